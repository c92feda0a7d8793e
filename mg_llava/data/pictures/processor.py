"""One picture and its boxes, from the file's pixels to the model's input: for training, evaluation and chat alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mg_llava.data.boxes.filter import NO_LIMITS, BoxLimits, BoxRules, Cap, Filtered, Reason, filter_boxes
from mg_llava.data.boxes.policy import StandIn
from mg_llava.data.choices import wrong_choices, wrong_count
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.frames import Canvas, Resize, crop_of
from mg_llava.data.pictures.geometry import PAD_COLOR, BoxMode, picture_to_canvas, place_boxes
from mg_llava.data.pictures.video import FrameUse
from mg_llava.data.records.regions import Region
from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.data.text.regions import RegionUse
from mg_llava.registry import TRANSFORMS

EmptyBox = Literal["corner", "none", "picture"]


@dataclass(frozen=True)
class ProcessedPicture:
    """A picture on its canvas, with its boxes in the order of their tokens; boxes, labels and scores are parallel.

    ``pixels`` is (3, S, S) uint8, ``boxes`` (n, 4) float32 xyxy in canvas pixels. ``is_empty`` says that no box was
    left, so that ``boxes`` holds the stand-in of the processor's ``empty_box`` (label ``""``, score 0), or nothing.
    """

    pixels: torch.Tensor
    boxes: torch.Tensor
    labels: list[str]
    scores: list[float]
    canvas: Canvas
    is_empty: bool
    numbers: list[int | None] = field(default_factory=list)
    """Which of the given boxes each one is; None for a stand-in."""
    region: Region | None = None
    """Of an object image; None for a picture."""


@dataclass(frozen=True)
class BoxFate:
    """What became of one box of a picture.

    ``box`` is xyxy in original pixels; ``place`` xyxy in canvas pixels, where its token looks, or would, not clipped
    where ``reason`` speaks of the place; ``token`` its number among the box tokens of the picture, None where it was
    dropped.
    """

    label: str
    score: float
    box: tuple[float, ...]
    place: tuple[float, ...]
    reason: Reason
    token: int | None = None

    @property
    def kept(self) -> bool:
        """Whether the box is a token."""
        return self.reason == "kept"


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class PictureProcessor:
    """Picture and boxes to canvas and box tokens' boxes. Immutable; neither pictures nor box records are changed.

    Args:
        image_size: Side S of the canvas in pixels.
        pad_to_square: Pad to a centered square; otherwise crop the center (see ``Canvas``).
        mode: ``reference`` places boxes as the published weights were trained; ``exact`` keeps fractions, clips boxes
            to the picture and drops tiny ones (see ``geometry``). Also the color conversion of ``pictures.to_rgb``.
        nms_iou: Overlap above which class-aware NMS removes a box; None for no NMS.
        max_boxes: Limit of boxes; None for no limit.
        cap: ``per_category`` or ``per_image`` (see ``boxes.filter.cap_boxes``).
        empty_box: What stands for "no box": ``corner``, the box [0, 0, 0, 0], which the published weights know;
            ``none``, no box token; ``picture``, one box around the whole picture.
        resize: ``shortest_edge`` or ``squash`` (see ``Canvas``).
        min_box_area: Smallest area of a box in ``exact`` mode, square canvas pixels.
        apply_exif: Rotate pictures as their EXIF orientation says; boxes must be in that frame.
        pad_color: 8-bit RGB of the padding.
        video: What is different for videos (see ``video.FrameUse``), or a dict of it.
        regions: How regions enter the text (see ``text.regions.RegionUse``), or a dict of it.

    Raises:
        ValueError: An argument is out of range; all wrong arguments are named in one message.
    """

    image_size: int
    pad_to_square: bool = True
    mode: BoxMode = "reference"
    nms_iou: float | None = 0.2
    max_boxes: int | None = 100
    cap: Cap = "per_category"
    empty_box: EmptyBox = "corner"
    resize: Resize = "shortest_edge"
    min_box_area: float = 1.0
    apply_exif: bool = False
    pad_color: tuple[int, int, int] = PAD_COLOR
    video: FrameUse = field(default_factory=FrameUse)
    regions: RegionUse = field(default_factory=RegionUse)

    def __post_init__(self) -> None:
        for name, kind in (("video", FrameUse), ("regions", RegionUse)):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, kind(**getattr(self, name)))
        object.__setattr__(self, "pad_color", tuple(self.pad_color))
        wrong = wrong_choices(self)
        wrong += wrong_count("image_size", self.image_size)
        wrong += wrong_count("max_boxes", self.max_boxes, none="no limit")
        if not 0 <= self.min_box_area < math.inf:
            wrong.append(f"min_box_area is {self.min_box_area}, must be a number of pixels")
        if len(self.pad_color) != 3 or not all(value in range(256) for value in self.pad_color):
            wrong.append(f"pad_color is {self.pad_color}, must be three of 0..255")
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            wrong.append(f"nms_iou is {self.nms_iou}, must lie in 0..1 or be None")
        if wrong:
            raise ValueError(f"{type(self).__name__}: {'; '.join(wrong)}")

    def __call__(
        self, image: Image.Image, boxes: BoxRecord | None = None, limits: BoxLimits = NO_LIMITS
    ) -> ProcessedPicture:
        """Process a picture in any color mode, with its boxes in original pixels.

        ``limits`` is what the text leaves for its boxes, the stand-in included.
        """
        image = to_rgb(image, self.mode, self.apply_exif)
        canvas = self.canvas_of(image.size)
        record = boxes if boxes is not None else NO_BOXES
        placed, index = self.token_boxes(record, canvas, limits)
        is_empty = len(index) == 0
        blank = len(placed) if is_empty else 0
        return ProcessedPicture(
            pixels=self._draw(image, canvas),
            boxes=placed,
            labels=[record.labels[i] for i in index] + [""] * blank,
            scores=[float(record.scores[i]) for i in index] + [0.0] * blank,
            canvas=canvas,
            is_empty=is_empty,
            numbers=[*index.tolist(), *[None] * blank],
        )

    def object_image(self, image: Image.Image, region: Region) -> ProcessedPicture:
        """The object image of a region of a picture, which has no boxes."""
        pixels, canvas = self.crop(image, region.box)
        return ProcessedPicture(pixels, torch.zeros(0, 4), [], [], canvas, True, region=region)

    def crop(self, image: Image.Image, box: Sequence[float]) -> tuple[torch.Tensor, Canvas]:
        """An object image: (3, S, S) uint8, the part of a picture around a box in original pixels, and its canvas."""
        rgb = to_rgb(image, self.mode, self.apply_exif)
        part = rgb.crop(crop_of(box, rgb.size, self.regions.context))
        canvas = Canvas(*part.size, self.image_size)
        return self._draw(part, canvas), canvas

    def draw(self, image: Image.Image, canvas: Canvas) -> torch.Tensor:
        """(3, S, S) uint8: a picture in any color mode on the canvas that was made for its size."""
        return self._draw(to_rgb(image, self.mode, self.apply_exif), canvas)

    def _draw(self, rgb: Image.Image, canvas: Canvas) -> torch.Tensor:
        return torch.from_numpy(picture_to_canvas(rgb, canvas, self.pad_color))

    @property
    def rules(self) -> BoxRules:
        """Which boxes may become tokens."""
        return BoxRules(self.nms_iou, self.max_boxes, self.cap)

    def canvas_of(self, image_size: tuple[int, int]) -> Canvas:
        """Where a picture of this width and height (after ``to_rgb``) lies on the canvas."""
        return Canvas(*image_size, self.image_size, self.pad_to_square, self.resize)

    def token_boxes(
        self, record: BoxRecord, canvas: Canvas, limits: BoxLimits = NO_LIMITS
    ) -> tuple[torch.Tensor, np.ndarray]:
        """As ``place``, but (k, 4) float32, and the stand-in where no box is left."""
        placed, index = self.place(record, canvas, limits)
        if not len(index):
            placed = self.stand_in(canvas, record)[: limits.room]
        return torch.from_numpy(placed.astype(np.float32)), index

    def place(self, record: BoxRecord, canvas: Canvas, limits: BoxLimits = NO_LIMITS) -> tuple[np.ndarray, np.ndarray]:
        """Filter and place boxes in original pixels.

        Returns:
            (k, 4) float64 canvas pixels and (k,) int64 indices into ``record``, both in the order of the tokens.
        """
        return self._place(record, canvas, limits)[:2]

    def explain(self, image_size: tuple[int, int], record: BoxRecord, limits: BoxLimits = NO_LIMITS) -> list[BoxFate]:
        """What ``place`` makes of each box of ``record``, in its order.

        ``image_size`` is the width and height of the picture, after ``to_rgb``.
        """
        canvas = self.canvas_of(image_size)
        placed, index, reasons = self._place(record, canvas, limits)
        everywhere = canvas.to_canvas(record.boxes)
        drawn, inside = place_boxes(record.boxes, canvas, self.mode, self.min_box_area)
        everywhere[inside] = drawn
        everywhere[index] = placed
        tokens = {box: token for token, box in enumerate(index.tolist())}
        return [
            BoxFate(label, float(score), tuple(box.tolist()), tuple(place.tolist()), reason, tokens.get(number))
            for number, (label, score, box, place, reason) in enumerate(
                zip(record.labels, record.scores, record.boxes, everywhere, reasons, strict=True)
            )
        ]

    def _place(
        self, record: BoxRecord, canvas: Canvas, limits: BoxLimits
    ) -> tuple[np.ndarray, np.ndarray, list[Reason]]:
        """What ``place`` returns, and what became of each of the n boxes of ``record``."""
        if self.mode == "reference":
            everything = np.arange(len(record))
            found = self._filter(canvas.to_padded(record.boxes), record, everything, limits)
            placed, left = place_boxes(record.boxes[found.kept], canvas, self.mode)
            reasons = found.reasons()
            for index in np.delete(found.kept, left).tolist():
                reasons[index] = "outside"
            return placed, found.kept[left], reasons
        placed, left = place_boxes(record.boxes, canvas, self.mode, self.min_box_area)
        found = self._filter(placed, record, left, limits)
        reasons = ["outside" if missed else "too small" for missed in canvas.misses(record.boxes).tolist()]
        for index, reason in zip(left.tolist(), found.reasons(), strict=True):
            reasons[index] = reason
        return placed[found.kept], left[found.kept], reasons

    def _filter(self, boxes: np.ndarray, record: BoxRecord, index: np.ndarray, limits: BoxLimits) -> Filtered:
        """Which of (n, 4) ``boxes``, which are the boxes ``index`` of ``record`` in another frame, stay."""
        return filter_boxes(boxes, record.scores[index], [record.labels[i] for i in index], self.rules, limits)

    def stand_in(self, canvas: Canvas, record: BoxRecord = NO_BOXES) -> np.ndarray:
        """(0 or 1, 4) canvas pixels, what stands for "no box": as ``record`` says, else as ``empty_box``."""
        kind = self._stand_in_kind(record)
        if kind == "none":
            return np.zeros((0, 4))
        return np.zeros((1, 4)) if kind == "corner" else canvas.picture_box[None]

    def stand_in_tokens(self, record: BoxRecord = NO_BOXES) -> int:
        """Number of box tokens of a picture that has no box left."""
        return 0 if self._stand_in_kind(record) == "none" else 1

    def _stand_in_kind(self, record: BoxRecord) -> str:
        return (record.empty_box if isinstance(record, StandIn) else None) or self.empty_box

    def to_dict(self) -> dict:
        """The arguments this processor was built with, for files that keep them."""
        plain = {"video": asdict(self.video), "regions": asdict(self.regions)}
        return {field.name: getattr(self, field.name) for field in fields(self)} | plain

    @property
    def of_frames(self) -> "PictureProcessor":
        """The processor of the frames of videos."""
        pad, limit = self.video.pad_to_square, self.video.max_boxes
        return replace(
            self,
            pad_to_square=self.pad_to_square if pad is None else pad,
            max_boxes=self.max_boxes if limit is None else limit,
        )
