"""One picture and its boxes, from the file's pixels to the model's input: for training, evaluation and chat alike."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image

from mg_llava.registry import TRANSFORMS

from .box_filter import Cap, filter_boxes
from .geometry import PAD_COLOR, BoxMode, Canvas, Resize, picture_to_canvas, place_boxes
from .pictures import to_rgb
from .schema import NO_BOXES, BoxRecord

_ALLOWED = {
    "mode": ("reference", "exact"),
    "cap": ("per_category", "per_image"),
    "empty_box": ("corner", "none", "picture"),
    "resize": ("shortest_edge", "squash"),
}


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
        cap: ``per_category`` or ``per_image`` (see ``box_filter.cap_boxes``).
        empty_box: What stands for "no box": ``corner``, the box [0, 0, 0, 0], which the published weights know;
            ``none``, no box token; ``picture``, one box around the whole picture.
        resize: ``shortest_edge`` or ``squash`` (see ``Canvas``).
        min_box_area: Smallest area of a box in ``exact`` mode, square canvas pixels.
        apply_exif: Rotate pictures as their EXIF orientation says; boxes must be in that frame.
        pad_color: 8-bit RGB of the padding.

    Raises:
        ValueError: An argument is out of range; all wrong arguments are named in one message.
    """

    image_size: int
    pad_to_square: bool = True
    mode: BoxMode = "reference"
    nms_iou: float | None = 0.2
    max_boxes: int | None = 100
    cap: Cap = "per_category"
    empty_box: str = "corner"
    resize: Resize = "shortest_edge"
    min_box_area: float = 1.0
    apply_exif: bool = False
    pad_color: tuple[int, int, int] = PAD_COLOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "pad_color", tuple(self.pad_color))
        wrong = [
            f"{name} is {getattr(self, name)!r}, allowed: {', '.join(allowed)}"
            for name, allowed in _ALLOWED.items()
            if getattr(self, name) not in allowed
        ]
        if self.image_size < 1:
            wrong.append(f"image_size is {self.image_size}, must be at least 1")
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            wrong.append(f"nms_iou is {self.nms_iou}, must lie in 0..1 or be None")
        if self.max_boxes is not None and self.max_boxes < 1:
            wrong.append(f"max_boxes is {self.max_boxes}, must be at least 1 or None")
        if wrong:
            raise ValueError(f"{type(self).__name__}: {'; '.join(wrong)}")

    def __call__(
        self, image: Image.Image, boxes: BoxRecord | None = None, text_is_long: bool = False
    ) -> ProcessedPicture:
        """Process one picture.

        Args:
            image: The picture, in any color mode.
            boxes: Its boxes in original pixels, or None.
            text_is_long: Whether the text nearly fills the context, which limits the boxes further.
        """
        image = to_rgb(image, self.mode, self.apply_exif)
        canvas = Canvas(image.width, image.height, self.image_size, self.pad_to_square, self.resize)
        pixels = torch.from_numpy(picture_to_canvas(image, canvas, self.pad_color))
        record = boxes if boxes is not None else NO_BOXES
        placed, index = self.place(record, canvas, text_is_long)
        is_empty = len(index) == 0
        if is_empty:
            placed = self._stand_in(canvas)
        blank = len(placed) if is_empty else 0
        return ProcessedPicture(
            pixels=pixels.permute(2, 0, 1).contiguous(),  # (S, S, 3) -> (3, S, S)
            boxes=torch.from_numpy(placed.astype(np.float32)),
            labels=[record.labels[i] for i in index] + [""] * blank,
            scores=[float(record.scores[i]) for i in index] + [0.0] * blank,
            canvas=canvas,
            is_empty=is_empty,
        )

    def place(self, record: BoxRecord, canvas: Canvas, text_is_long: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Filter and place boxes.

        Args:
            record: Boxes in original pixels.
            canvas: The frame to place them on.
            text_is_long: Whether the text nearly fills the context.

        Returns:
            (k, 4) float64 canvas pixels and (k,) int64 indices into ``record``, both in the order of the tokens.
        """
        if self.mode == "reference":
            chosen = self._filter(canvas.to_padded(record.boxes), record, np.arange(len(record)), text_is_long)
            placed, kept = place_boxes(record.boxes[chosen], canvas, self.mode)
            return placed, chosen[kept]
        placed, kept = place_boxes(record.boxes, canvas, self.mode, self.min_box_area)
        chosen = self._filter(placed, record, kept, text_is_long)
        return placed[chosen], kept[chosen]

    def _filter(self, boxes: np.ndarray, record: BoxRecord, index: np.ndarray, text_is_long: bool) -> np.ndarray:
        """Which of (n, 4) ``boxes``, which are the boxes ``index`` of ``record`` in another frame, stay."""
        labels = [record.labels[i] for i in index]
        return filter_boxes(boxes, record.scores[index], labels, self.nms_iou, self.max_boxes, self.cap, text_is_long)

    def _stand_in(self, canvas: Canvas) -> np.ndarray:
        """(0 or 1, 4) canvas pixels, what stands for "no box"."""
        if self.empty_box == "none":
            return np.zeros((0, 4))
        return np.zeros((1, 4)) if self.empty_box == "corner" else canvas.picture_box[None]

    def to_dict(self) -> dict:
        """The arguments this processor was built with, for files that keep them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
