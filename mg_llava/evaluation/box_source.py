"""Where the boxes of an evaluation come from: a box file, a detector, the annotations, or a change made to them.

Boxes are xyxy in pixels of the original picture throughout.
"""

import difflib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.boxes.store import BoxStore, frame_problem, open_box_store
from mg_llava.data.inputs import make_boxes
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.records.open import fingerprint
from mg_llava.data.records.schema import NO_BOXES, BoxRecord, RecordError
from mg_llava.evaluation.benchmark import Question
from mg_llava.registry import PROPOSERS

BoxKind = Literal["none", "detected", "oracle", "shuffled", "jitter", "top"]
ToFrame = Callable[[Image.Image], Image.Image]
"""Brings a picture into the frame that boxes are in, as the picture processor does."""

_FORMS: dict[BoxKind, str] = {
    **{kind: kind for kind in ("none", "detected", "oracle", "shuffled")},  # type: ignore[misc]
    "jitter": "jitter=0.1",
    "top": "top=10",
}
"""How each kind is written."""
_BOX_FILES = (".json", ".jsonl", ".safetensors")
_MAX_JITTER = 0.5
_DRAWS = 32


class FoundBoxes(NamedTuple):
    """The boxes of a question's picture, or of each frame of its video, and what they count as.

    Attributes:
        boxes: One record for each picture, without boxes where there are none to be had.
        counts: Pictures ``with`` boxes of a file, ``without``, with boxes that a detector ``generated`` now, and how
            many of these have a record that holds no box (``empty``); zeros are left out.
    """

    boxes: tuple[BoxRecord, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class BoxSpec:
    """What ``--boxes`` says.

    Attributes:
        kind: ``none``: no boxes. ``detected``: the box file's, or the detector's for pictures that are not in it.
            ``oracle``: those of the oracle box file. ``shuffled``: those of another picture. ``jitter``: each edge
            moved by up to a share of the box. ``top``: the best ones.
        value: Share of ``jitter``, number of ``top``.
    """

    kind: BoxKind
    value: float | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


def parse_box_spec(text: str) -> BoxSpec:
    """Parse ``none``, ``detected``, ``oracle``, ``shuffled``, ``jitter=0.1`` or ``top=10``.

    Raises:
        ValueError: The text is none of them, or its number is out of range.
    """
    name, equals, number = text.strip().partition("=")
    kind = next((kind for kind in _FORMS if kind == name), None)
    if kind is None:
        near = difflib.get_close_matches(name, _FORMS, 1)
        hint = f"; is {near[0]!r} meant?" if near else ""
        raise ValueError(f"boxes={text!r} is unknown{hint} Known: {', '.join(_FORMS.values())}, or a box file")
    if kind not in ("jitter", "top"):
        if equals:
            raise ValueError(f"boxes={text!r}: {kind!r} takes no value")
        return BoxSpec(kind)
    try:
        value = float(number) if kind == "jitter" else int(number)
    except ValueError as error:
        raise ValueError(f"boxes={text!r}: {kind!r} takes a number, as in {_FORMS[kind]!r}") from error
    if kind == "jitter" and not 0 <= value < _MAX_JITTER:
        raise ValueError(f"boxes={text!r}: a jitter is at least 0 and below {_MAX_JITTER}, in sides of the box")
    if kind == "top" and value < 1:
        raise ValueError(f"boxes={text!r}: top keeps at least 1 box; use 'none' for no boxes")
    return BoxSpec(kind, value)


def is_box_file(spec: str) -> bool:
    """Whether ``--boxes`` names a box file."""
    return Path(spec).suffix in _BOX_FILES


def build_box_source(
    spec: str,
    store: BoxStore | str | Path | None = None,
    detector: Any = None,
    *,
    oracle: BoxStore | str | Path | None = None,
    seed: int = 0,
    to_frame: ToFrame = to_rgb,
) -> "BoxSource":
    """A source of boxes.

    Args:
        spec: See :func:`parse_box_spec`; or the path of a box file, which means ``detected`` with that file.
        store: Detected boxes, or their file. Pictures are looked up by the question's box key, then by their content
            where the file has content hashes.
        detector: Finds the boxes of pictures that are not in ``store``: a function of an RGB picture, something with
            ``propose``, the config of a transform, or of a ``BoxPipeline``. None lets such pictures go without boxes.
        oracle: Boxes of the annotations, or their file.
        seed: For ``shuffled`` and ``jitter``.
        to_frame: Brings a picture into the frame that boxes are in.

    Raises:
        FileNotFoundError: A box file does not exist.
        ValueError: The spec is malformed, or it needs a box file that was not given.
    """
    if is_box_file(spec):
        spec, store = "detected", spec
    parsed = parse_box_spec(spec)
    if parsed.kind == "oracle" and oracle is None:
        raise ValueError("boxes='oracle' needs the box file of the annotations (--oracle-boxes)")
    if parsed.kind == "shuffled" and store is None:
        raise ValueError("boxes='shuffled' takes the boxes of other pictures, for which it needs a box file")
    if parsed.kind in ("detected", "jitter", "top") and store is None and detector is None:
        message = f"boxes='{parsed}' without box file and detector: all questions go without boxes"
        print_log(message, logger="current", level=logging.WARNING)
    used = {"none": None, "oracle": oracle}.get(parsed.kind, store)
    if isinstance(used, str | Path):
        used = open_box_store(used, missing="empty")
    finds = None if parsed.kind in ("none", "oracle") else _proposer(detector)
    return BoxSource(parsed, used, finds, seed, to_frame)


class BoxSource:
    """Gives each question its boxes; made by :func:`build_box_source`.

    What is drawn depends on the seed and the picture alone, so that all questions about a picture see the same boxes,
    in any order and on any number of processes.
    """

    def __init__(
        self,
        spec: BoxSpec,
        store: BoxStore | None,
        propose: Callable[[Image.Image], Any] | None,
        seed: int,
        to_frame: ToFrame,
    ) -> None:
        self.spec = spec
        self._store = store
        self._propose = propose
        self._seed = seed
        self._to_frame = to_frame
        self._keys = list(store.keys()) if store is not None and spec.kind == "shuffled" else []
        if spec.kind == "shuffled" and len(self._keys) < 2:
            raise ValueError(f"{store.source if store else ''}: shuffling needs the boxes of at least two pictures")
        self._found: dict[str, BoxRecord] = {}
        self._detecting = Lock()

    def look_up(self, question: Question, images: Sequence[Image.Image] = ()) -> FoundBoxes:
        """The boxes of a question's picture, and what they count as; safe to call from several threads.

        Args:
            question: The question.
            images: Its picture; of a video its frames. Used where boxes are looked up by content, found by the
                detector or moved; without them boxes are not clipped to the picture.

        Raises:
            RecordError: The boxes of a video are for another number of frames.
        """
        key = question.id if question.box_key is None else question.box_key
        name = question.picture_key or str(key)
        shown: list[Image.Image | None] = [*images] or [None] * (question.frames or 1)
        if question.frames is None:
            found = [self._one(str(key), name, shown[0])]
        else:
            if self._store is not None and (problem := frame_problem(self._store.find, str(key), len(shown))):
                raise RecordError(f"{self._store.source} has {problem}; make boxes with --frames {len(shown)}")
            found = [self._one(f"{key}#{i}", f"{name}#{i}", frame) for i, frame in enumerate(shown)]
        counts = Counter(source for _, source in found)
        counts["empty"] = sum(record is not None and not len(record) for record, _ in found)
        boxes = tuple(NO_BOXES if record is None else record for record, _ in found)
        return FoundBoxes(boxes, {kind: count for kind, count in counts.items() if count})

    def describe(self) -> dict[str, Any]:
        """Spec, box file with its hash and detector, what generates missing boxes, and seed, for results."""
        described: dict[str, Any] = {"spec": str(self.spec), "seed": self._seed}
        if self._store is not None:
            described["file"] = self._store.source
            if Path(self._store.source).is_file():
                described["file_hash"] = fingerprint(self._store.source)
            known = {name: self._store.metadata.get(name) for name in ("detector", "settings")}
            described |= {name: value for name, value in known.items() if value}
        if self._propose is not None:
            owner = getattr(self._propose, "__self__", self._propose)
            described["generated_by"] = getattr(owner, "__qualname__", None) or type(owner).__name__
        return described

    def _one(self, key: str, picture_key: str, image: Image.Image | None) -> tuple[BoxRecord | None, str]:
        """The boxes of a picture, and what they count as."""
        frame = None if image is None else cache(partial(self._to_frame, image))
        own = self._store.find(key, image) if self._store is not None else None
        rng = np.random.default_rng([self._seed, _digest(picture_key)])
        kind, value = self.spec.kind, self.spec.value or 0
        if kind == "shuffled" and (own is not None or self._propose is not None):
            return self._partner(own, picture_key, rng, frame and frame().size), "with"
        source = "with"
        if own is None:
            if self._propose is None or frame is None:
                return None, "without"
            own, source = self._detect(picture_key, frame), "generated"
        if kind == "top":
            own = BoxAugmentation(cap_probability=1.0, cap_range=(int(value), int(value)))(own, (0, 0), rng)
        if kind == "jitter":
            size: Any = frame().size if frame else (np.inf, np.inf)
            own = BoxAugmentation(jitter=value)(own, size, rng)
        return own, source

    def _detect(self, picture_key: str, frame: Callable[[], Image.Image]) -> BoxRecord:
        assert self._propose is not None
        with self._detecting:
            if picture_key not in self._found:
                owner = f"picture {picture_key!r}, detected boxes"
                self._found[picture_key] = make_boxes(self._propose(frame()), owner)
            return self._found[picture_key]

    def _partner(
        self, own: BoxRecord | None, picture_key: str, rng: np.random.Generator, size: tuple[int, int] | None
    ) -> BoxRecord:
        """The boxes of another picture, scaled to this one where both sizes are known, clipped to it."""
        assert self._store is not None
        for _ in range(_DRAWS):
            key = self._keys[int(rng.integers(len(self._keys)))]
            record = self._store.find(key)
            assert record is not None
            if own is None or not np.array_equal(own.boxes, record.boxes):
                return record if size is None else _fit(record, self._store.image_size(key), size)
        raise ValueError(f"{self._store.source}: no other boxes than those of {picture_key!r} found to shuffle with")


def _digest(picture_key: str) -> int:
    return int.from_bytes(hashlib.blake2b(picture_key.encode(), digest_size=8).digest(), "little")


def _fit(record: BoxRecord, old: tuple[int, int] | None, new: tuple[int, int]) -> BoxRecord:
    """Boxes of a picture of size ``old`` on one of size ``new``; those outside of it are dropped."""
    sides = np.tile(np.array(new, dtype=np.float64), 2)
    boxes = record.boxes if old is None else record.boxes * np.tile(np.array(new) / np.array(old), 2)
    boxes = np.clip(boxes, 0, sides)
    kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    labels = tuple(record.labels[i] for i in kept.tolist())
    return replace(record, boxes=boxes[kept], scores=record.scores[kept], labels=labels)


def _proposer(detector: Any) -> Callable[[Image.Image], Any] | None:
    if isinstance(detector, Mapping) and "type" in detector:
        detector = PROPOSERS.build(dict(detector))
    elif isinstance(detector, Mapping):
        from mg_llava.detection.pipeline import build_pipeline

        detector = build_pipeline(detector)
    return getattr(detector, "propose", detector)
