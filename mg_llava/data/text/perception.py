"""The perception-embedded prompt of MR-MLLM (arXiv 2406.15768): detected objects as text before the question."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mg_llava.data.choices import wrong_choices, wrong_count
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, Turn, make_box_record
from mg_llava.data.text.coordinates import BoxText, are_writable
from mg_llava.registry import TRANSFORMS
from mg_llava.tokens import IMAGE_PLACEHOLDER

_HEADS = re.compile(rf"(?:\s*{re.escape(IMAGE_PLACEHOLDER)}\s*)*")
_NONE = "none"
_CERTAIN, _UNCERTAIN = " (sure)", " (maybe)"


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class PerceptionPrompt:
    """Prompt part that names the detected objects of each picture after the placeholders of the pictures.

    ``Detected objects: dog [0.214, 0.330, 0.402, 0.718]; cat [...].``, or ``none`` for no object.

    Args:
        text: How boxes are written, or a dict of its settings; None writes labels alone.
        threshold: Least score of an object.
        most: Number of objects of a picture, those with the best scores.
        order: By ``score``, best first, or from ``left`` to right, by centers.
        sure: Least score of an object that is called sure; others are called maybe. None writes neither.
        dropout: Share of the samples that train without the prompt, so that answers do not depend on it alone.

    Raises:
        ValueError: A setting is out of its range.
    """

    text: BoxText | Mapping[str, Any] | None = field(default_factory=BoxText)
    threshold: float = 0.3
    most: int = 20
    order: Literal["score", "left"] = "score"
    sure: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.text is not None:
            object.__setattr__(self, "text", BoxText.build(self.text))
        shares = {"threshold": self.threshold, "sure": self.sure, "dropout": self.dropout}
        wrong = [*wrong_choices(self), *wrong_count("most", self.most)]
        wrong += [
            f"{name} is {share!r}, must lie in 0..1"
            for name, share in shares.items()
            if share is not None and not 0 <= share <= 1
        ]
        if wrong:
            raise ValueError(f"{type(self).__name__}: {'; '.join(wrong)}")

    def __call__(
        self,
        turns: tuple[Turn, ...],
        objects: Sequence[BoxRecord],
        sizes: Sequence[tuple[int, int]],
        draw: np.random.Generator | None = None,
    ) -> tuple[Turn, ...]:
        """See :class:`mg_llava.data.text.prompt.PromptPart`; nothing is dropped without ``draw``."""
        is_dropped = draw is not None and draw.random() < self.dropout
        first = next((number for number, turn in enumerate(turns) if turn.role == "human"), None)
        if is_dropped or not objects or first is None:
            return turns
        lines = [self.write(boxes, size) for boxes, size in zip(objects, sizes, strict=True)]
        if len(lines) > 1:
            lines = [f"Picture {number}. {line}" for number, line in enumerate(lines, start=1)]
        heads = _HEADS.match(turns[first].text)
        assert heads is not None
        place, whole = heads.end(), turns[first].text
        changed = replace(turns[first], text=f"{whole[:place]}{chr(10).join(lines)}\n{whole[place:]}")
        return (*turns[:first], changed, *turns[first + 1 :])

    def select(self, record: BoxRecord) -> np.ndarray:
        """(m,) int64: which objects of a picture are written, in their order."""
        kept = np.flatnonzero((record.scores >= self.threshold) & are_writable(record.boxes))
        kept = kept[np.argsort(-record.scores[kept], kind="stable")][: self.most]
        if self.order == "left":
            kept = kept[np.argsort(record.boxes[kept][:, [0, 2]].sum(1), kind="stable")]
        return kept

    def write(self, record: BoxRecord, size: tuple[int, int]) -> str:
        """The prompt of one picture.

        Args:
            record: Its objects, original pixels.
            size: Its width and height.
        """
        items = [self._write_one(record, number, size) for number in self.select(record).tolist()]
        return f"Detected objects: {'; '.join(items) or _NONE}."

    def list_objects(self, boxes: np.ndarray, labels: Sequence[str], size: tuple[int, int]) -> str:
        """The beginning of a prompt, up to the last of some objects in their order; arguments as of :meth:`write`."""
        record = make_box_record(boxes, None, labels)
        items = [self._write_one(record, number, size) for number in range(len(record))]
        return f"Detected objects: {'; '.join(items)}"

    def read(self, text: str, size: tuple[int, int]) -> BoxRecord:
        """The objects of a prompt that :meth:`write` made, original pixels; scores are 1, of uncertain ones 0.

        Raises:
            ValueError: It writes labels alone.
        """
        if not isinstance(self.text, BoxText):
            raise ValueError("a prompt without boxes cannot be read; set text=dict(style='unit3')")
        found = self.text.read(text, size)
        start, labels, scores = text.find(":") + 1, [], []
        for begin, end in found.spans:
            labels.append(text[start:begin].strip(" ;"))
            after = next((words for words in (_CERTAIN, _UNCERTAIN) if text.startswith(words, end)), "")
            scores.append(0.0 if after == _UNCERTAIN else 1.0)
            start = end + len(after)
        return make_box_record(found.boxes, scores, labels) if labels else NO_BOXES

    def _write_one(self, record: BoxRecord, number: int, size: tuple[int, int]) -> str:
        # brackets and separators belong to the format
        label = " ".join(re.sub(r"[\[\]{}<>();:]", " ", record.labels[number]).split()) or "object"
        certainty = "" if self.sure is None else (_CERTAIN if record.scores[number] >= self.sure else _UNCERTAIN)
        box = f" {self.text.write(record.boxes[number], size)}" if isinstance(self.text, BoxText) else ""
        return f"{label}{box}{certainty}"
