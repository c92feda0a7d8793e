"""The box pipeline: tags for pictures, boxes for tags; the same for millions of pictures and for a fresh one."""

import difflib
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mg_llava.data.boxes.filter import BoxRules, Cap
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.boxes import tidy_boxes
from mg_llava.detection.detector import Detector, Size
from mg_llava.detection.files import NotFound
from mg_llava.detection.proposals import Proposals
from mg_llava.detection.tags import FixedTags, PictureName, Tagger, Tags, split_tags
from mg_llava.registry import DETECTORS, PROPOSERS, TAGGERS
from mg_llava.safe_config import check_config
from mg_llava.work.json_text import load_object

_LISTS = ("coco80", "common")
_TAGGERS = {
    "ram": ("RAMPlusTagger", "checkpoint"),
    "clip": ("OpenCLIPTagger", "path"),
    "tags": ("TagFile", "path"),
    "list": ("FixedTags", "tags"),
}
_DETECTORS = {
    "owlv2": ("OWLv2Detector", "path"),
    "grounding-dino": ("GroundingDINODetector", "path"),
    "detr": ("EncoderDetector", "path"),
    "coco": ("CocoBoxes", "path"),
    "yolo": ("YoloBoxes", "folder"),
    "boxes": ("BoxFile", "path"),
    "proposals": ("ProposalDetector", ""),
}
_OPTIONS = {
    "OWLv2Detector": ("device", "dtype", "threshold"),
    "GroundingDINODetector": ("device", "dtype", "threshold"),
    "EncoderDetector": ("device", "threshold"),
    "RAMPlusTagger": ("device", "dtype"),
    "OpenCLIPTagger": ("device", "dtype"),
}
"""Settings of a command line that models take."""


@dataclass(frozen=True)
class Prepared:
    """A picture that is ready for the networks."""

    image: Image.Image
    input: Any
    name: PictureName


@dataclass(frozen=True)
class Detection:
    """The result for one picture.

    Attributes:
        record: Its boxes, in original pixels.
        tags: What was looked for; None for nothing in particular.
        is_known: False where a file of boxes lacks the picture.
    """

    record: BoxRecord
    tags: Tags | None
    is_known: bool = True


class BoxPipeline:
    """Boxes for pictures.

    By default the boxes are what the detector found, clipped to the picture: NMS and caps are applied when a sample is
    made of them, so that their settings can be changed later.

    Args:
        tagger: A tagger or its config; None where the detector needs no tags.
        detector: A detector or its config.
        nms_iou: Boxes that overlap a better one of the same label by more are dropped; None for no NMS.
        max_boxes: Most boxes of a picture; None for no limit.
        cap: Which boxes stay; see ``boxes.filter.cap_boxes``.

    Raises:
        ValueError: The detector needs tags and there is no tagger.

    Examples:
        >>> pipeline = BoxPipeline(
        ...     tagger=dict(type="FixedTags", tags="coco80"),
        ...     detector=dict(type="OWLv2Detector", path="google/owlv2-large-patch14-ensemble"),
        ... )
        >>> predictor = Predictor(..., proposer=pipeline.propose)
    """

    def __init__(
        self,
        detector: Detector | Mapping[str, Any],
        tagger: Tagger | Mapping[str, Any] | None = None,
        nms_iou: float | None = None,
        max_boxes: int | None = None,
        cap: Cap = "per_image",
    ) -> None:
        self.detector: Detector = DETECTORS.build(dict(detector)) if isinstance(detector, Mapping) else detector
        self.tagger: Tagger | None = TAGGERS.build(dict(tagger)) if isinstance(tagger, Mapping) else tagger
        if self.detector.needs_tags and self.tagger is None:
            raise ValueError(
                f"{type(self.detector).__name__} looks for tags; name a tagger, such as dict(type='FixedTags')"
            )
        self.rules = BoxRules(nms_iou, max_boxes, cap)
        self._lock = threading.Lock()

    def shape(self, size: Size) -> Hashable:
        """Pictures with the same value go through the detector together."""
        return self.detector.shape(size)

    def prepare(self, image: Image.Image, name: PictureName | None = None) -> Prepared:
        """Get a picture ready, in the frame that boxes are wanted in; may be called in several threads."""
        image = to_rgb(image)
        return Prepared(image, self.detector.prepare(image), name or PictureName())

    def detect(self, pictures: Sequence[Prepared]) -> list[Detection]:
        """Boxes of prepared pictures."""
        images, inputs, names = ([getattr(p, part) for p in pictures] for part in ("image", "input", "name"))
        sizes = [image.size for image in images]
        tags: list[Tags | None] = [None] * len(pictures)
        with self._lock, torch.no_grad():
            if self.tagger is not None and self.detector.needs_tags:
                tags = [*self.tagger(images, names)]
            found = self.detector.find(inputs, sizes, [tag or () for tag in tags], names)
        # a list that is the same for all pictures says nothing of one
        said = [() if tag is None or isinstance(self.tagger, FixedTags) else tag for tag in tags]
        return [
            Detection(replace(tidy_boxes(record, size, self.rules), tags=own), tag, not isinstance(record, NotFound))
            for record, size, tag, own in zip(found, sizes, tags, said, strict=True)
        ]

    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[BoxRecord]:
        """Boxes of pictures of any color mode in their own pixels, best score first; ``names`` as of a ``Tagger``."""
        names = names or [PictureName()] * len(images)
        prepared = [self.prepare(image, name) for image, name in zip(images, names, strict=True)]
        return [found.record for found in self.detect(prepared)] if prepared else []

    def propose(self, image: Image.Image) -> BoxRecord:
        """Boxes of one picture; safe to call from several threads. A ``Predictor`` takes it as its proposer."""
        return self([image])[0]


@PROPOSERS.register_module()
class BoxProposer:
    """A pipeline as a proposer in configs: for ``missing_box="detect"`` and for a ``Predictor``.

    Args:
        **pipeline: Arguments of :class:`BoxPipeline`.
    """

    def __init__(self, **pipeline: Any) -> None:
        self.pipeline = BoxPipeline(**pipeline)

    def __call__(self, image: Image.Image) -> Proposals:
        """Boxes of one picture in its pixels, best score first."""
        record = self.pipeline.propose(image)
        return Proposals(record.boxes, record.scores.tolist(), list(record.labels))


def pipeline_config(detector: str, tagger: str | None = None, **settings: Any) -> dict[str, Any]:
    """Arguments of :class:`BoxPipeline` from two short texts, as command lines give them.

    Args:
        detector: ``owlv2:PATH``, ``grounding-dino:PATH``, ``detr:PATH`` (or another of its family), ``coco:FILE``,
            ``yolo:FOLDER``, ``boxes:FILE``, ``proposals``; or a config file (``.json``, or ``.py`` with
            ``box_pipeline = dict(...)``).
        tagger: ``ram:CHECKPOINT``, ``clip:FOLDER``, ``tags:FILE`` (for each picture), ``list:FILE``, ``coco80``,
            ``common``, or the tags themselves, separated by commas.
        **settings: More arguments; those that are None are left out. ``threshold``, ``device`` and ``dtype`` go to the
            models.

    Raises:
        FileNotFoundError: The config file does not exist.
        ValueError: A text is malformed.
    """
    if detector.endswith((".py", ".json")) and ":" not in detector:
        config = _read_config(Path(detector))
    else:
        config = {"detector": _short("detector", detector, _DETECTORS)}
    if tagger is not None:
        config["tagger"] = _tagger(tagger)
    given = {name: value for name, value in settings.items() if value is not None}
    ours = {name: given.pop(name) for name in ("device", "dtype", "threshold") if name in given}
    for part in (config["detector"], config.get("tagger") or {}):
        names = _OPTIONS.get(part.get("type", "").rpartition(".")[2], ())
        part |= {name: value for name, value in ours.items() if name in names}
    if "threshold" in ours:
        if "threshold" not in _OPTIONS.get(config["detector"].get("type", "").rpartition(".")[2], ()):
            raise ValueError(f"threshold was given, but detector {detector!r} has none; leave it out")
        if not 0 <= ours["threshold"] <= 1:
            raise ValueError(f"threshold is {ours['threshold']}, must lie in 0..1")
    BoxRules(given.get("nms_iou"), given.get("max_boxes"))  # before anything is read
    return {**config, **given}


def build_pipeline(detector: str | Mapping[str, Any], tagger: str | None = None, **settings: Any) -> BoxPipeline:
    """A pipeline from its config, or from short texts; see :func:`pipeline_config`."""
    if isinstance(detector, Mapping):
        return BoxPipeline(**detector, **settings)
    return BoxPipeline(**pipeline_config(detector, tagger, **settings))


def _tagger(text: str) -> dict[str, Any]:
    kind, colon, _ = text.partition(":")
    if colon or (kind in _TAGGERS and kind != "list"):
        return _short("tagger", text, _TAGGERS)
    if text in _LISTS:
        return {"type": "FixedTags", "tags": text}
    known = [*_TAGGERS, *_LISTS]
    if "," not in text and difflib.get_close_matches(text, set(known) - {"list"}, 1):
        raise ValueError(f"{_unknown('tagger', text, known)}; a tag alone is written with a comma: '{text},'")
    tags = split_tags(text)
    if not tags:
        raise ValueError("the list of tags is empty; name at least one tag")
    return {"type": "FixedTags", "tags": list(tags)}


def _short(what: str, text: str, known: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    if kind not in known:
        raise ValueError(_unknown(what, kind, list(known)))
    name, argument = known[kind]
    if argument and not rest:
        raise ValueError(f"{what} {text!r} lacks what it reads: write {kind}:{argument.upper()}")
    return {"type": name, argument: rest} if argument else {"type": name}


def _unknown(what: str, found: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(found, known, 1)
    hint = f"; is {near[0]!r} meant?" if near else ""
    return f"{what} {found!r} is unknown{hint} Known: {', '.join(known)}"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config {path} of the box pipeline does not exist")
    if path.suffix == ".json":
        try:
            content = load_object(path)
        except ValueError as error:
            raise ValueError(f"config {path} of the box pipeline cannot be read: {error}; write it again") from error
        config = check_config(content.get("box_pipeline", content), str(path), DETECTORS, TAGGERS, PROPOSERS)
    else:
        from mmengine.config import Config

        content = Config.fromfile(str(path)).to_dict()
        config = content.get("box_pipeline", content)
    if not isinstance(config, dict) or not isinstance(config.get("detector"), dict):
        raise ValueError(f"{path} has no box_pipeline = dict(detector=dict(...), tagger=dict(...))")
    return dict(config)
