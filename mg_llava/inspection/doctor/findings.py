"""What can be wrong with data: every kind of finding with meaning, weight and fix, and a counter of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mg_llava.data.pictures.files import PictureFault

Level = Literal["error", "warning", "note"]
"""``error``: training fails, stops by its policies, or learns from wrong coordinates throughout a source. ``warning``:
it skips or changes something. ``note``: worth knowing."""

LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_KEPT = 1000


class Kind(NamedTuple):
    """One thing that can be wrong.

    Attributes:
        what: What it means, in one line.
        fix: What to do about it.
        level: Weight, unless the source's policies say otherwise.
    """

    what: str
    fix: str
    level: Level = "warning"


_RESTORE = "download or copy the file again; bad_image='skip' uses another sample in its place"

KINDS: dict[str, Kind] = {
    # config
    "config_path": Kind("a path of the config does not exist", "correct the path in the config", "error"),
    "token_count": Kind(
        "the tokens of a picture are stated otherwise than the model's encoders give them",
        "ask the model: tokens=dict(type='mg_llava.count_tokens', model=model)",
        "error",
    ),
    "no_embedding": Kind(
        "the LLM has no word embeddings for tokens of the tokenizer",
        "use the tokenizer of the LLM's folder, or give the LLM rows for the added tokens (resize_token_embeddings)",
        "error",
    ),
    "config_setting": Kind("a part of the data set cannot be built", "correct the setting in the config", "error"),
    "unknown_dataset": Kind("a data set of another kind is not checked", "check it by other means"),
    "records_file": Kind("a file of records cannot be read", "repair or write the file again", "error"),
    "box_file": Kind("a box file cannot be read", "repair it or make the boxes again", "error"),
    # records
    "bad_record": Kind("a record is malformed or of an unknown kind", "correct or remove the record", "error"),
    "placeholder_count": Kind(
        "the number of <image> differs from the number of pictures",
        "write one <image> per picture into the human turns that have an answer",
        "error",
    ),
    "turn_order": Kind(
        "questions and answers do not alternate", "write human and gpt turns by turns, from a question to an answer"
    ),
    "unanswered": Kind("a record has no answered question and is left out", "add an answer or remove the record"),
    "empty_answer": Kind("an answer is empty: only its end token carries loss", "fill in the answer or remove it"),
    "no_label": Kind(
        "no token carries loss, after truncation or at all", "raise max_length or shorten the record"
    ),
    "over_budget": Kind("the pictures alone exceed the context", "use fewer pictures or a longer context"),
    "truncated_text": Kind("the text exceeds its limit and is cut", "raise max_length or split the record"),
    "duplicate_id": Kind("an id comes again in the same source", "give every record an id of its own", "note"),
    "duplicate_id_boxes": Kind(
        "an id comes again with other pictures, so that one set of boxes serves both", "give each record its own id"
    ),
    "no_records": Kind("no record of the source can be used", "check data_path and the findings above", "error"),
    # text
    "special_token": Kind(
        "the text contains a special token of the tokenizer or template", "remove it from the text, or write it apart"
    ),
    "placeholder_in_answer": Kind("<image> stands in an answer, where it is plain text", "remove it from the answer"),
    "lossy_text": Kind(
        "the text is not what comes back from the tokenizer", "normalize the text, or use the LLM's own tokenizer"
    ),
    "template_token": Kind(
        "a mark of the template is no single token of the tokenizer", "use the template that the LLM was tuned with"
    ),
    "over_context": Kind(
        "text, visual tokens and boxes together exceed the LLM's positions", "lower context_length"
    ),
    # pictures
    "missing_picture": Kind("a picture file does not exist", "check image_folder and the path in the record"),
    "empty_picture": Kind("a picture file has no bytes", _RESTORE),
    "zero_size_picture": Kind("a picture has no pixels", _RESTORE),
    "truncated_picture": Kind("a picture file is cut off", _RESTORE),
    "not_a_picture": Kind("a file is not a picture, perhaps a saved error page", _RESTORE),
    "undecodable_picture": Kind("a picture cannot be decoded", _RESTORE),
    "oversized_picture": Kind("a picture has more pixels than allowed, perhaps a bomb", "scale it down, or allow it"),
    "outside_picture": Kind(
        "a picture lies outside of the image folder, by its path or behind a link",
        "put it there, or set faults=dict(outside_pictures='allow')",
    ),
    "wrong_extension": Kind(
        "the file's extension promises another format; it is read by its content", "rename the file and the record"
    ),
    "exif_rotation": Kind(
        "the EXIF orientation is not upright; boxes must be in the frame that apply_exif says",
        "rotate the file for good, or make boxes for the same frame",
    ),
    "deep_gray": Kind("gray with more than 8 bits", "convert to 8 bits, or use mode='exact' of the picture processor"),
    "transparency": Kind("a picture has transparent parts", "lay it on a background, or use mode='exact'"),
    "cmyk": Kind("CMYK is converted without its color profile", "convert to RGB if colors matter", "note"),
    "palette": Kind("a picture has a palette", "nothing: it is converted to RGB", "note"),
    "animated": Kind("a file holds several frames; the first is taken", "save the frame that is meant", "note"),
    # boxes
    "missing_boxes": Kind("a picture has no box record", "make boxes for it, or choose another missing_box policy"),
    "bad_boxes": Kind("a box record is malformed or comes twice", "make the record again"),
    "score_range": Kind("a score of a box lies outside of 0..1", "write scores as probabilities"),
    "flat_box": Kind("a box has no width or no height", "leave such boxes out, or make them again", "note"),
    "box_outside": Kind("a box lies outside of the picture", "check frame and order of the coordinates"),
    "box_overhang": Kind("a box reaches beyond the picture and is cut", "clip the boxes to the picture", "note"),
    "boxes_swapped": Kind(
        "boxes fit the picture only with x and y swapped", "write boxes as [x1, y1, x2, y2], not [y1, x1, y2, x2]"
    ),
    "boxes_normalized": Kind(
        "boxes look like shares of the picture, not pixels", "multiply by the picture's width and height"
    ),
    "boxes_other_size": Kind(
        "boxes look made for another size of the picture", "make boxes on these files, or scale them"
    ),
    "boxes_other_orientation": Kind(
        "boxes fit the picture only in its other EXIF orientation", "set apply_exif as it was when boxes were made"
    ),
    "boxes_cut": Kind("there is no room for all boxes in the context", "raise context_length", "note"),
    "unused_boxes": Kind("the box file has records for no picture", "nothing, if the file serves other data", "note"),
    "coordinates": Kind(
        "boxes do not come back from the canvas, or miss the pixels they stand for", "correct the picture processor",
        "error",
    ),
    # whole sources
    "source_boxes_swapped": Kind(
        "the boxes of the whole source have x and y swapped", "write boxes as [x1, y1, x2, y2]", "error"
    ),
    "source_boxes_normalized": Kind(
        "the boxes of the whole source are shares, not pixels", "multiply by width and height", "error"
    ),
    "source_boxes_convention": Kind(
        "the boxes of the whole source are written in another convention", "write boxes as [x1, y1, x2, y2]", "error"
    ),
    "source_boxes_other_size": Kind(
        "the boxes of the whole source were made for pictures of another size", "make boxes on these files", "error"
    ),
    "source_boxes_small": Kind(
        "no box of the source comes near the right or lower edge, as if made on smaller pictures",
        "check the size that boxes were made on",
    ),
    "source_boxes_squeezed": Kind(
        "boxes never reach the far end of the shorter side, as if a detector's padding had been scaled away",
        "post-process detections with the padded square's size, then cut to the picture",
    ),
    "too_many_bad": Kind(
        "more samples would be skipped than max_bad_samples allows",
        "repair the data or raise max_bad_samples",
        "error",
    ),
    "eval_leak": Kind("a training picture is also in the evaluation data", "remove the record"),
    "eval_unreadable": Kind("an evaluation picture cannot be read", "repair it or correct --eval; it was left out"),
}  # fmt: skip

PICTURE_FAULTS: dict[PictureFault, str] = {
    "missing": "missing_picture",
    "empty": "empty_picture",
    "zero size": "zero_size_picture",
    "truncated": "truncated_picture",
    "not a picture": "not_a_picture",
    "undecodable": "undecodable_picture",
    "too large": "oversized_picture",
    "outside": "outside_picture",
}


class Found(NamedTuple):
    """One finding.

    Attributes:
        kind: Key of ``KINDS``.
        id: Id of the record, box record or file; empty for what concerns all of a source.
        row: Place of the record in its file; None for anything else.
        detail: What was found.
    """

    kind: str
    id: str = ""
    row: int | None = None
    detail: str = ""


@dataclass
class Findings:
    """Findings of one source: counts, and the first of each kind.

    Args:
        levels: Weights that differ from those of ``KINDS``, by kind.
    """

    levels: dict[str, Level] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Found]] = field(default_factory=dict)

    def add(self, found: Found, count: int = 1) -> None:
        """Count a finding, for ``count`` cases."""
        self.counts[found.kind] = self.counts.get(found.kind, 0) + count
        examples = self.examples.setdefault(found.kind, [])
        if len(examples) < _KEPT:
            examples.append(found)

    def extend(self, found: Iterable[Found]) -> None:
        """Count several findings."""
        for one in found:
            self.add(one)

    def level(self, kind: str) -> Level:
        """Weight of a kind in this source."""
        return self.levels.get(kind, KINDS[kind].level)

    def sorted_kinds(self) -> list[str]:
        """Kinds that were found, errors first, in the order of ``KINDS``."""
        found = [kind for kind in KINDS if kind in self.counts]
        return sorted(found, key=lambda kind: LEVELS.index(self.level(kind)))

    def total(self, level: Level) -> int:
        """Number of findings of a weight."""
        return sum(count for kind, count in self.counts.items() if self.level(kind) == level)

    def to_list(self) -> list[dict[str, Any]]:
        """All kinds with counts and examples as plain values for JSON."""
        return [
            {
                "kind": kind,
                "level": self.level(kind),
                "count": self.counts[kind],
                "what": KINDS[kind].what,
                "fix": KINDS[kind].fix,
                "examples": [found._asdict() for found in self.examples[kind]],
            }
            for kind in self.sorted_kinds()
        ]
