"""Joining predictions with annotations by id, with the counts of what did not meet; figures and layout of a result."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mg_llava.data.records.tables import id_key

_Item = TypeVar("_Item")
Line = Mapping[str, Any]
"""A line of predictions, or a record of a data file."""
Lines = Sequence[Line]
Rule = tuple[Mapping[str, Any], Sequence[Line]]
"""Metrics and samples of a rule."""
ScoreResult = dict[str, Any]

_SHOWN = 5
_MAIN = ("accuracy", "anls")
_ROUNDED = "rounded"
_NAME = "joined on"
"""Key of the number that lines of a repeated id are joined by."""


@dataclass
class Joined:
    """Predictions in the order of the annotations.

    Attributes:
        texts: Reply to each question, unchanged; ``""`` where it is missing, null or NaN.
        lines: Prediction line of each question; None where there is none.
        n_missing: Questions without a prediction line.
        n_unknown: Prediction lines whose id is no question's.
        n_duplicates: Prediction lines that a later line of the same id replaced.
        warnings: The same in words, with the first few ids.
    """

    texts: list[str]
    lines: list[Line | None]
    n_missing: int = 0
    n_unknown: int = 0
    n_duplicates: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.texts)

    def beside(self, items: Sequence[_Item]) -> Iterator[tuple[_Item, str, Line | None]]:
        """Each of the questions with its reply and its line."""
        return zip(items, self.texts, self.lines, strict=True)

    def result(self, rules: Mapping[str, Rule], warnings: Sequence[str] = (), **extra: Any) -> ScoreResult:
        """A result in the common layout.

        Args:
            rules: By name, the metrics and samples of each. Metrics are figures, and groups of them by name: a
                group's ``accuracy`` or ``anls`` gets the name of the group, its other figures one below
                (``split/val``, ``split/val/n``). What is under ``rounded`` gets the name of the same figure with
                ``_rounded`` behind it. Samples are one for each question, with ``id``, ``score`` and further facts.
            warnings: What is wrong besides the counts.
            **extra: Further keys.
        """
        counts = {name: getattr(self, name) for name in ("n", "n_missing", "n_unknown", "n_duplicates")}
        scored = {name: {"metrics": _flatten(m), "per_sample": samples} for name, (m, samples) in rules.items()}
        return {**counts, "warnings": [*self.warnings, *warnings], **extra, "rules": scored}


def reply_text(value: Any) -> str:
    """A reply as text: null and NaN (as spreadsheets have an empty one) are empty, other values are written out."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return value if isinstance(value, str) else str(value)


def join_predictions(
    ids: Sequence[Any],
    predictions: Iterable[Line],
    id_field: str | Sequence[str] = "index",
    text_field: str | Sequence[str] = "prediction",
    key: Callable[[Line], Any] | None = None,
) -> Joined:
    """Join prediction lines with questions by id; the last line of an id wins.

    Args:
        ids: Ids of the questions, unique as far as ``id_key`` goes.
        predictions: Prediction lines.
        id_field: Key of the id on a line; of several, the first that the line has.
        text_field: Key of the reply on a line; of several, the first that the line has.
        key: Id of a line, instead of ``id_field``; None for a line of no question.

    Raises:
        ValueError: If a line has none of the id fields or none of the reply fields.
    """
    id_fields = (id_field,) if isinstance(id_field, str) else tuple(id_field)
    text_fields = (text_field,) if isinstance(text_field, str) else tuple(text_field)
    found: dict[str, Line] = {}
    known = {id_key(value) for value in ids}
    unknown: list[str] = []
    duplicates: list[str] = []
    for number, line in enumerate(predictions, start=1):
        value = key(line) if key is not None else line[_field(line, id_fields, "id", number)]
        _field(line, text_fields, "reply", number)
        name = id_key(value)
        if value is None or name not in known:
            unknown.append(name)
            continue
        if name in found:
            duplicates.append(name)
        found[name] = line
    lines = [found.get(id_key(value)) for value in ids]
    missing = [id_key(value) for value, line in zip(ids, lines, strict=True) if line is None]
    texts = ["" if line is None else reply_text(line[_field(line, text_fields, "reply", 0)]) for line in lines]
    empty = [id_key(value) for value, line, text in zip(ids, lines, texts, strict=True) if line and not text.strip()]
    warnings = [
        *name_ids(empty, "predictions are empty"),
        *name_ids(missing, f"of {len(lines)} questions have no prediction"),
        *name_ids(unknown, "predictions are of no question in the data and were left out"),
        *name_ids(duplicates, "predictions were replaced by a later one of the same id"),
    ]
    return Joined(texts, lines, len(missing), len(unknown), len(duplicates), warnings)


def number_repeated(keys: Iterable[str]) -> list[str]:
    """Unique names: the first of a key is the key, the next ones are ``key #2``, ``key #3``, ..."""
    seen: Counter[str] = Counter()
    names = []
    for key in keys:
        seen[key] += 1
        names.append(key if seen[key] == 1 else f"{key} #{seen[key]}")
    return names


def join_repeated(
    keys: Sequence[str], predictions: Lines, key: Callable[[Line], str], text_field: str | Sequence[str]
) -> Joined:
    """Join as ``join_predictions`` does, where several questions may have one of the ``keys``.

    Where a key has more lines than questions, the last lines count and the surplus is counted as duplicates.
    """
    found = [key(line) for line in predictions]
    surplus = Counter(found)
    surplus.subtract(keys)
    seen: Counter[str] = Counter()
    lines = []
    for line, name in zip(predictions, found, strict=True):
        place = max(1, seen[name] + 1 - max(0, surplus[name]))
        seen[name] += 1
        lines.append({**line, _NAME: name if place == 1 else f"{name} #{place}"})
    return join_predictions(number_repeated(keys), lines, _NAME, text_field)


def _flatten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    exact = {name: value for name, value in metrics.items() if name != _ROUNDED}
    rounded = {f"{name}_{_ROUNDED}": value for name, value in _walk(metrics.get(_ROUNDED, {}))}
    return {**dict(_walk(exact)), **rounded}


def _walk(metrics: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        place = path if path and name in _MAIN else f"{path}/{name}" if path else name
        if isinstance(value, Mapping):
            yield from _walk(value, place)
        else:
            yield place, value


def name_ids(ids: Iterable[Any], text: str) -> list[str]:
    """A warning with the number of ids, a text, and the first few of them; none where there are none."""
    names = [str(name) for name in ids]
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"{len(names)} {text} ({shown})"]


def _field(line: Line, names: Sequence[str], what: str, number: int) -> str:
    for name in names:
        if name in line:
            return name
    raise ValueError(
        f"prediction {number} has no {what}: expected {' or '.join(map(repr, names))}, found the keys {list(line)}"
    )
