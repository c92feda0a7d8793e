"""A training sample as the model sees it: pictures on their canvas, the fate of each box, tokens one by one.

The data set opens the sample as for training, so that augmentation, caps and budgets are the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.pictures.loading import LoadedPicture
from mg_llava.data.pictures.processor import BoxFate, PictureProcessor
from mg_llava.data.samples import LoadedSample
from mg_llava.tokens import BOX_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX

_UNKNOWN = "\ufffd"
_WORD_START = "▁"


@dataclass(frozen=True)
class Token:
    """A token of the text, or all the visual tokens or box tokens of a picture.

    Attributes:
        id: Its id; of pictures and boxes the id of the placeholder.
        supervised: Whether it carries loss.
        count: Number of positions it takes.
    """

    kind: Literal["text", "image", "boxes"]
    text: str
    id: int
    supervised: bool = False
    count: int = 1


@dataclass(frozen=True)
class PictureView:
    """A picture as the encoders see it, and its boxes.

    Attributes:
        path: Path in the record.
        pixels: (S, S, 3) uint8, the canvas.
        canvas: Where the picture lies on it.
        fates: What became of each box, in the order of the box file.
        boxes: (n, 4) canvas pixels: the boxes whose tokens the model gets, in their order.
        is_stand_in: Whether ``boxes`` only stands for "no box".
        regions: Name and place, canvas pixels, of each region that has an object image.
    """

    path: str
    pixels: np.ndarray
    canvas: Canvas
    fates: tuple[BoxFate, ...]
    boxes: np.ndarray
    is_stand_in: bool
    regions: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; coordinates rounded."""
        fates = [
            {
                "label": fate.label,
                "score": round(fate.score, 4),
                "box": [round(value, 2) for value in fate.box],
                "place": [round(value, 2) for value in fate.place],
                "kept": fate.kept,
                "reason": fate.reason,
                "token": fate.token,
            }
            for fate in self.fates
        ]
        size = {"width": self.canvas.width, "height": self.canvas.height, "canvas": self.canvas.size}
        tokens = self.boxes.round(2).tolist()
        return {"path": self.path, **size, "box_tokens": tokens, "stand_in": self.is_stand_in, "boxes": fates}


@dataclass(frozen=True)
class SampleView:
    """One sample as the model sees it: ``index`` counts in its source, ``position`` in the whole data set."""

    source: str
    index: int
    position: int
    id: str
    pictures: tuple[PictureView, ...]
    tokens: tuple[Token, ...]
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Number of positions: text, visual tokens and box tokens."""
        return sum(token.count for token in self.tokens)

    @property
    def supervised(self) -> int:
        """Number of positions with loss."""
        return sum(token.count for token in self.tokens if token.supervised)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("source", "index", "position", "id", "length", "supervised", "notes")
        pictures = [picture.to_dict() for picture in self.pictures]
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "pictures": pictures, "tokens": [vars(token) for token in self.tokens]}


def view_sample(
    source: LLaVADataset, index: int, position: int | None = None, has_box_tokens: bool = True
) -> SampleView:
    """Look at sample ``index`` of a source, which has another ``position`` in the whole data set or none.

    Raises:
        ValueError: The sample cannot be used: a picture that cannot be read, malformed boxes, no token with loss.
    """
    loaded, processor = source.open(index), source.picture_processor
    encoded, pictures = loaded.encoded, list[PictureView]()
    notes: list[str] = []
    if processor is not None:
        pictures = _view_pictures(loaded, processor)
    tokens_of = source.budget.of(loaded.record.video).tokens
    crops = [picture.region is not None for picture in loaded.pictures]
    boxes = [len(picture.boxes) * (has_box_tokens and not loaded.is_named) for picture in pictures]
    visual = [tokens_of.per_crop if crop else tokens_of(1, 0) for crop in crops]
    counts = list(zip(visual, boxes, strict=True))
    tokens = tuple(_list_tokens(encoded.input_ids, encoded.labels, source.tokenizer, counts))
    if encoded.truncated:
        notes.append(f"the text was cut to {len(encoded.input_ids)} ids")
    if source.boxes.box_augmentation is not None and pictures:
        notes.append("boxes after augmentation, as in training")
    if processor is not None and any(picture.is_stand_in and len(picture.boxes) for picture in pictures):
        notes.append(f"no box is left; one token stands for that ({processor.empty_box})")
    if pictures and not has_box_tokens:
        notes.append("the model of this config has no box branch")
    position = index if position is None else position
    return SampleView(source.name, index, position, loaded.record.id, tuple(pictures), tokens, tuple(notes))


def decode_token(tokenizer: Any, token: int) -> str:
    """Text of one token, with the space it begins with; parts of a letter as the vocabulary names them."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if isinstance(piece, str) and _WORD_START in piece:  # SentencePiece drops the space of a token by itself
        return piece.replace(_WORD_START, " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return str(piece) if not text or _UNKNOWN in text else text


def _list_tokens(
    ids: Iterable[int], labels: Iterable[int], tokenizer: Any, counts: Sequence[tuple[int, int]]
) -> Iterator[Token]:
    """Tokens of ids and labels; ``counts`` are the numbers of visual tokens and box tokens of each picture."""
    waiting = iter(counts)
    for token, label in zip(map(int, ids), map(int, labels), strict=True):
        if token in (IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX):
            visual, boxes = next(waiting)
            name = "image" if token == IMAGE_TOKEN_INDEX else "object image"
            yield Token("image", f"<{name}: {visual} tokens>" if visual else f"<{name}>", token, count=visual)
            if token == IMAGE_TOKEN_INDEX:
                yield Token("boxes", f"<{boxes} box{'es' * (boxes != 1)}>", token, count=boxes)
        elif token == BOX_TOKEN_INDEX:
            yield Token("boxes", "<box>", token)
        else:
            yield Token("text", decode_token(tokenizer, token), token, label != IGNORE_INDEX)


def _view_pictures(loaded: LoadedSample, processor: PictureProcessor) -> list[PictureView]:
    """Pictures and object images in the order of their placeholders, the latter named by their order."""
    shown = [(picture.region, f"object image {number}") for number, picture in enumerate(_crops(loaded))]
    paths, names = iter(loaded.record.images), iter(name for _, name in shown)
    views, number = [], 0
    for picture in loaded.pictures:
        if picture.region is not None:
            views.append(_view_picture(f"{next(names)} {picture.region.label}".strip(), picture, processor, ()))
            continue
        own = [(name, region.box) for region, name in shown if region is not None and region.picture == number]
        places = picture.canvas.to_canvas(np.array([box for _, box in own]).reshape(-1, 4)).tolist()
        regions = tuple((name, tuple(place)) for (name, _), place in zip(own, places, strict=True))
        views.append(_view_picture(next(paths), picture, processor, regions))
        number += 1
    return views


def _crops(loaded: LoadedSample) -> list[LoadedPicture]:
    return [picture for picture in loaded.pictures if picture.region is not None]


def _view_picture(
    path: str, picture: LoadedPicture, processor: PictureProcessor, regions: tuple[tuple[str, tuple[float, ...]], ...]
) -> PictureView:
    assert picture.pixels is not None  # it was opened, not looked up in a feature cache
    pixels = picture.pixels.permute(1, 2, 0).numpy()  # (3, S, S) -> (S, S, 3)
    fates = tuple(picture.fates(processor)) if picture.region is None else ()
    boxes = picture.boxes.double().numpy()
    return PictureView(path, pixels, picture.canvas, fates, boxes, picture.is_empty, regions)
