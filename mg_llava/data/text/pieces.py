"""What an MQ-Former reads of a sample: the items and the caption of its picture, or its question."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mg_llava.data.records.schema import BoxRecord
from mg_llava.data.records.turns import Turn
from mg_llava.data.text.coordinates import BoxText, are_writable
from mg_llava.pieces import Item, Pieces, WordPieces
from mg_llava.registry import TRANSFORMS
from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER


@TRANSFORMS.register_module()
class PieceWriter:
    """Word pieces for each picture of a sample; ``extra`` of a data set's boxes.

    Items are the boxes with a label, the surest first, those smaller than a pixel left out. They are named by the tag
    of the picture that their label stands for; see :func:`match_label`.

    Args:
        vocabulary: Folder or hub name of a BERT tokenizer, or all words in their order.
        reads: ``caption``: items, then the answers of the record; or ``question``: its questions.
        items: Whether captions have their items.
        text: How coordinates are written, or a dict of its settings.
        least_score: Boxes of lower scores are no items.
        most: Pieces of [CLS] and items; later items are left out.
        most_of_text: Pieces of a caption, or of a question, whose first ones are left out.
    """

    def __init__(
        self,
        vocabulary: str | Sequence[str],
        reads: Literal["caption", "question"] = "caption",
        items: bool = True,
        text: BoxText | Mapping[str, Any] | None = None,
        least_score: float = 0.25,
        most: int = 512,
        most_of_text: int | None = None,
    ) -> None:
        if reads not in ("caption", "question"):
            raise ValueError(f"reads is {reads!r}; known: caption, question")
        self.words = WordPieces(vocabulary)
        self.reads, self.items, self.least_score, self.most = reads, items, least_score, most
        self.text = BoxText.build({"frame": "original"} if text is None else text)
        self.most_of_text = most_of_text or (87 if reads == "caption" else 128)

    def __call__(
        self, turns: Sequence[Turn], objects: Sequence[BoxRecord], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, list[Pieces]]:
        """``pieces`` with a row for each picture.

        Args:
            turns: The conversation.
            objects: For each picture its boxes, original pixels, before the filter.
            sizes: For each picture its width and height.
        """
        if self.reads == "question":
            return {"pieces": [self.words.question(question_of(turns), self.most_of_text)] * len(objects)}
        caption = "\n".join(turn.text for turn in turns if turn.role == "gpt")
        return {
            "pieces": [
                self.words.caption(self.items_of(record, size), caption, self.most, self.most_of_text)
                for record, size in zip(objects, sizes, strict=True)
            ]
        }

    def items_of(self, record: BoxRecord, size: tuple[int, int]) -> list[Item]:
        """The items of a picture."""
        if not self.items or not len(record):
            return []
        named = np.array([bool(label.strip()) for label in record.labels])
        kept = np.flatnonzero(named & are_writable(record.boxes) & (record.scores >= self.least_score))
        kept = kept[np.argsort(-record.scores[kept], kind="stable")]
        numbers = self.text.numbers(record.boxes[kept], size)
        names = (match_label(record.labels[place], record.tags) for place in kept.tolist())
        return [Item(name, four) for name, four in zip(names, numbers, strict=True)]


def match_label(label: str, tags: Sequence[str]) -> str:
    """The tag that a label stands for: the same, else one that it begins or ends with, the longest; else itself.

    Detectors of phrases give back parts of a prompt of tags, which may run over from one tag into the next.
    """
    words = label.lower().split()
    known = {tuple(tag.lower().split()): tag for tag in tags}
    for length in range(len(words), 0, -1):
        for part in (words[:length], words[-length:]):
            if tuple(part) in known:
                return known[tuple(part)]
    return label


def question_of(turns: Sequence[Turn]) -> str:
    """What was asked so far, without the places of pictures; the last question is the last line."""
    asked = [turn.text for turn in turns if turn.role == "human"]
    texts = [text.replace(IMAGE_PLACEHOLDER, " ").replace(VIDEO_PLACEHOLDER, " ").strip() for text in asked]
    return "\n".join(texts)
