"""Finding and reading files of benchmarks and of predictions, with messages that name file and line or row."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, read_table, require_columns, unique_rows
from mg_llava.work.json_text import parse_json

Records = list[dict[str, Any]]
TABLES = ("*.tsv", "*.csv")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_WRAPPERS = ("predictions", "results", "data", "outputs")
"""Keys under which other tools put the list of predictions."""


def find_files(paths: Sequence[str | Path], *patterns: str) -> list[Path]:
    """Those of the files, and of the files right inside of the folders, whose name matches a glob."""
    files = [file for path in map(Path, paths) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [file for file in files if any(file.match(pattern) for pattern in patterns)]


def find_file(paths: Sequence[str | Path], what: str, *patterns: str) -> Path:
    """The one file that matches; see ``find_files``.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = find_files(paths, *patterns)
    if len(found) == 1:
        return found[0]
    given = listing(paths)
    if not found:
        raise ValueError(f"{given}: no {what} there (looked for {', '.join(patterns)}); give the file itself")
    raise ValueError(f"{given}: several files may be the {what}: {listing(found)}; give one of them")


def only_path(paths: Sequence[Path], what: str) -> Path:
    """The only path of a benchmark that takes one; raises ``ValueError`` for several."""
    if len(paths) != 1:
        raise ValueError(f"{what}, got {len(paths)}: {listing(paths)}")
    return paths[0]


def listing(paths: Iterable[str | Path]) -> str:
    """Paths for a message."""
    return ", ".join(map(str, paths))


def read_rows(path: Path, *columns: str) -> tuple[list[Row], list[str]]:
    """Rows of a TSV or CSV that has the columns, the first of each ``index``, and warnings of the others.

    Raises:
        ValueError: The table is malformed; the message names file and row.
    """
    return unique_rows(path, require_columns(path, read_table(path), ("index", *columns)))


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: If it is no JSON; the message names file and line.
    """
    try:
        return _parse(path, _read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: not JSON ({error.msg}); is the file cut off?") from error


def read_json_lines(path: str | Path) -> Records:
    """Objects of a JSON Lines file; blank lines are skipped.

    Raises:
        ValueError: If a line is no JSON object; the message names file and line.
    """
    return parse_lines(path, _read_text(path))


def read_records(path: Path) -> Any:
    """Content of a JSON or, by its name, a JSON Lines file."""
    return read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)


def _read_text(path: str | Path) -> str:
    """Text of a UTF-8 file, without its byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error


def parse_lines(path: str | Path, text: str) -> Records:
    """Objects of a text in JSON Lines; ``path`` is for messages."""
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            lines.append(_checked(_parse(f"{path}: line {number}", line), f"{path}: line {number}"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: line {number} is not JSON ({error.msg}); is the file cut off? Remove or repair the line"
            ) from error
    return lines


def _parse(where: str | Path, text: str) -> Any:
    """The value of a text; only what is no JSON at all is left to the caller, who knows the line."""
    try:
        content = parse_json(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write the file again") from error
    if _SURROGATE.search(text):
        for number, entry in enumerate(content if isinstance(content, list) else [content], start=1):
            _check_unicode(entry, f"{where}: entry {number}" if isinstance(content, list) else str(where))
    return content


def _check_unicode(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: half of a surrogate pair stands in a text, which is no Unicode; mend the text"
        ) from error


def _checked(line: Any, where: str) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(line).__name__}")
    return line


@contextmanager
def naming_files(paths: Iterable[str | Path], form: str) -> Iterator[None]:
    """Let errors of code that finds files in another form become errors that name the files.

    Raises:
        ValueError: There was one.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{listing(paths)}: not in the form that is needed ({form}), {fault}") from error


def take(record: Any, name: str, where: str) -> Any:
    """A field that a record must have; raises ``ValueError``, which says where, if it has not."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object, found {type(record).__name__}")
    if name not in record:
        raise ValueError(f"{where}: no field {name!r}; found {', '.join(map(repr, record))}")
    return record[name]


def check_unique(ids: Iterable[Any], path: str | Path) -> None:
    """Raise ``ValueError`` if an id occurs twice."""
    twice = [value for value, count in Counter(map(str, ids)).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: id {twice[0]} occurs more than once ({len(twice)} such ids); remove the extra rows")


def read_predictions(path: str | Path) -> Records:
    """Prediction lines of a file.

    Args:
        path: ``.tsv``, ``.csv`` or ``.xlsx`` (needs openpyxl) with a header row; anything else is JSON lines, a JSON
            list of objects, or one JSON object. Of an object, the values become lines with their key as ``id``,
            ``index`` and ``question_id`` where they lack them (a value that is no object is the ``prediction``,
            ``text`` and ``response``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"predictions {path} do not exist")
    if path.suffix.lower() in (".tsv", ".csv"):
        return [dict(row) for row in read_table(path)]
    return _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_json(path)


def _read_xlsx(path: Path) -> Records:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ValueError(f"{path}: reading spreadsheets needs openpyxl (pip install 'mg_llava[eval]')") from error
    try:
        workbook = load_workbook(path, read_only=True)
    except Exception as error:  # openpyxl and zipfile raise nearly anything on a broken file
        raise ValueError(f"{path}: not a readable spreadsheet ({error})") from error
    rows = workbook.worksheets[0].iter_rows(values_only=True)
    header = [str(cell) for cell in next(rows, ())]
    return [dict(zip(header, row, strict=False)) for row in rows if any(cell is not None for cell in row)]


def _read_json(path: Path) -> Records:
    text = _read_text(path)
    try:
        content = _parse(path, text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("["):
            return parse_lines(path, text)
        message = f"{path}: line {error.lineno}: broken JSON list ({error.msg}); is the file cut off?"
        raise ValueError(message) from error
    if isinstance(content, dict):
        return _lines_of_dict(content)
    if isinstance(content, list):
        return [_checked(line, f"{path}: entry {number}") for number, line in enumerate(content, start=1)]
    raise ValueError(f"{path}: holds {type(content).__name__}, expected prediction objects")


_ID_FIELDS = ("index", "question_id", "questionId", "id", "pid", "image_id", "img_id")
"""Fields with which a lone line of any benchmark names its question."""


def _lines_of_dict(content: dict[str, Any]) -> Records:
    for name in _WRAPPERS:
        if isinstance(content.get(name), list) and all(isinstance(line, dict) for line in content[name]):
            return content[name]
    has_id = any(name in content for name in _ID_FIELDS)
    if has_id and not any(isinstance(value, dict) for value in content.values()):
        return [content]  # JSON lines with a single line
    lines = []
    for key, value in content.items():
        reply = value if isinstance(value, dict) else {"prediction": value, "text": value, "response": value}
        lines.append({"id": key, "index": key, "question_id": key, **reply})
    return lines
