"""What the page shows of a question: the model's input, and what contributed to its answer."""

import base64
import io
import itertools
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.inference.attribution import METHOD, Attribution
from mg_llava.inference.batching import PictureGroup, PreparedRequest
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer, Request
from mg_llava.tokens import BOX_TOKEN_INDEX, IMAGE_TOKEN_INDEX, OBJECT_TOKEN_INDEX

_PLACEHOLDERS = {IMAGE_TOKEN_INDEX: "<image>", OBJECT_TOKEN_INDEX: "<object>", BOX_TOKEN_INDEX: "<box>"}


def picture_file(image: Image.Image, most: int = 1600) -> bytes:
    """A picture for a browser, as PNG; a large one is reduced to ``most`` pixels on its longer side."""
    shown = image.convert("RGB")
    shown.thumbnail((most, most))
    file = io.BytesIO()
    shown.save(file, format="PNG")
    return file.getvalue()


def model_input(predictor: Predictor, request: Request) -> dict[str, Any]:
    """What the model receives of a request with one picture.

    Returns:
        ``canvas``, the picture that the encoders see, as a data URL, and ``size``, its side in pixels; ``boxes``, each
        with its place on the canvas, its token's number and why it has none; ``tokens``, counts; and ``prompt``, the
        text with a placeholder where tokens of the picture, of a named box or of an object image stand.

    Raises:
        ValueError: The request is wrong.
    """
    front_end, system = predictor.front_end, predictor.model
    prepared = PreparedRequest(front_end, 0, request)
    decoded = PictureGroup([prepared]).load()
    if isinstance(decoded, Exception):
        raise decoded
    seen, *crops = decoded.pictures
    canvas = seen.canvas
    fates = front_end.picture_processor.explain((canvas.width, canvas.height), prepared.boxes_in(prepared.open())[0])
    pixels = Image.fromarray(seen.pixels.permute(1, 2, 0).numpy())
    count = system.token_count
    tokens = {"text": sum(token >= 0 for token in prepared.ids), "visual": count(1, 0)}
    tokens |= {"boxes": count(1, len(seen.boxes)) - count(1, 0), "crops": len(crops) * count.per_crop}
    return {
        "canvas": "data:image/png;base64," + base64.b64encode(picture_file(pixels, canvas.size)).decode(),
        "size": canvas.size,
        "boxes": [
            {"box": _plain(one.place), "label": one.label, "token": one.token, "reason": one.reason} for one in fates
        ],
        "tokens": {**tokens, "all": sum(tokens.values())},
        "prompt": _prompt_text(front_end.tokenizer, prepared.ids),
    }


def contributions(found: Attribution, answer: Answer) -> dict[str, Any]:
    """Plain values of an attribution to an answer about one picture, coordinates in its pixels.

    Returns:
        ``objects``, in the order of the tokens; ``regions`` (g, g) with ``area``, the part of the picture's frame that
        they cover, or None; ``every_object`` and ``every_region``, of ``visual`` tokens; ``score`` and ``method``.
    """
    shares, seen = found.pictures[0], answer.pictures[0]
    named = list(zip(seen.boxes.tolist(), seen.labels, shares.objects.tolist(), strict=False))
    size = seen.canvas.size
    return {
        "method": METHOD,
        "score": found.score,
        "every_object": shares.every_object,
        "every_region": shares.every_region,
        "visual": shares.visual,
        "objects": [{"box": _plain(box), "label": label, "share": share} for box, label, share in named],
        "stand_in": float(shares.objects.sum()) if len(shares.objects) and not named else None,
        "crops": list(found.crops),
        "regions": None if shares.regions is None else shares.regions.tolist(),
        "area": _plain(seen.canvas.to_original(np.array([[0.0, 0.0, size, size]]))[0].tolist()),
    }


def _plain(box: Any) -> list[float]:
    return [round(value, 2) for value in box]


def _prompt_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids; a placeholder stands for tokens of something else."""
    pieces = []
    for is_text, run in itertools.groupby(ids, lambda token: token >= 0):
        tokens = list(run)
        pieces += [tokenizer.decode(tokens)] if is_text else [_PLACEHOLDERS[token] for token in tokens]
    return "".join(pieces)
