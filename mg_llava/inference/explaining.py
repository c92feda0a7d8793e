"""How an LLM reads a given answer: the probability of each of its tokens, and where each looks in the pictures.

Attention is that of the position that a token is predicted from, as the mean over the heads of one layer. It says
where the layer reads, not why; for contributions to the answer see :mod:`mg_llava.inference.attribution`.

Shapes: k tokens of the answer, L positions of the LLM, H heads, g side of the grid of visual tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mg_llava.data.pictures.frames import Canvas
from mg_llava.inference.attribution import (
    answer_log_probabilities,
    encode_request,
    merge_answer,
    token_places,
    visual_grid,
)
from mg_llava.inference.batching import PreparedRequest
from mg_llava.inference.requests import Request
from mg_llava.models.generation import evaluating


@dataclass(frozen=True)
class AnswerReading:
    """What the LLM makes of an answer.

    Attributes:
        tokens: k texts.
        probabilities: (k,) of each token, after the question and the tokens before it.
        maps: For each picture (k, g, g), the attention to its visual tokens, rows from the top of the canvas; None
            where those are on no grid. Empty where no layer was asked for.
        masses: For each picture (k,), the attention to all of its tokens, boxes included; of 1 for the whole row.
        canvases: Where each picture lies on its canvas.
    """

    tokens: tuple[str, ...]
    probabilities: np.ndarray
    maps: tuple[np.ndarray | None, ...]
    masses: tuple[np.ndarray, ...]
    canvases: tuple[Canvas, ...]

    @property
    def mean_probability(self) -> float:
        """Mean over the tokens."""
        return float(self.probabilities.mean())


@torch.no_grad()
def read_answer(
    predictor: Any, request: Request, answer: str | Sequence[int], layer: int | None = None
) -> AnswerReading:
    """Let the LLM read a request and an answer to it; one pass.

    Args:
        predictor: The predictor.
        request: The question with its pictures.
        answer: Text, or ids.
        layer: Number of the layer whose attention is given, from 0, or from -1 backwards; None for none.

    Raises:
        PictureError: A picture cannot be read.
        ValueError: The answer is empty, there is no such layer, or the LLM gives no attention.
    """
    tokenizer, model = predictor.front_end.tokenizer, predictor.model
    given = tokenizer.encode(answer, add_special_tokens=False) if isinstance(answer, str) else answer
    ids = [int(token) for token in given]
    if not ids:
        raise ValueError("the answer is empty: there is nothing to read; give --answer, or another question")
    answering = predictor.answering({}, 1)
    with evaluating(model):
        one = encode_request(answering, PreparedRequest(predictor.front_end, 0, request))
        inputs = merge_answer(model, one, ids)
        with model.condition(inputs.rows), _plain_attention(model.llm, layer is not None):
            output = model.llm(
                inputs_embeds=inputs.inputs_embeds,
                attention_mask=inputs.attention_mask,
                position_ids=inputs.position_ids,
                use_cache=False,
                output_attentions=layer is not None,
            )
    probabilities = answer_log_probabilities(output.logits, ids).exp().cpu().numpy().astype(np.float64)
    maps: list[np.ndarray | None] = []
    masses: list[np.ndarray] = []
    if layer is not None:
        attention = attention_of_layer(output.attentions, layer)[-len(ids) - 1 : -1]  # (k, L)
        for kinds in token_places(one, inputs):
            side = visual_grid(model, len(kinds["visual"]))
            visual = attention[:, kinds["visual"]].numpy()
            maps.append(None if side is None else visual.reshape(len(ids), side, side))
            masses.append(sum(attention[:, own].sum(dim=1) for own in kinds.values()).numpy())  # type: ignore[union-attr]
    texts = tuple(tokenizer.decode([token]) for token in ids)
    return AnswerReading(texts, probabilities, tuple(maps), tuple(masses), tuple(seen.canvas for seen in one.pictures))


def attention_of_layer(attentions: Sequence[Tensor | None] | None, layer: int) -> Tensor:
    """``(L, L)`` float64 on the CPU, the mean over heads of a layer's attention ``(1, H, L, L)``.

    Raises:
        ValueError: There is no such layer, or it gives no attention.
    """
    count = len(attentions or ())
    if not count:
        raise ValueError("this LLM gives no attention; its architecture has no way to compute it openly")
    if not -count <= layer < count:
        raise ValueError(f"layer is {layer}; the LLM has {count} layers, 0 to {count - 1}")
    found = (attentions or ())[layer]
    if found is None:
        raise ValueError(f"layer {layer} of this LLM gives no attention; take another layer")
    return found[0].double().mean(dim=0).cpu()


def heat_on_picture(grid: np.ndarray, canvas: Canvas) -> np.ndarray:
    """(height, width) float32 of the original picture: the values of a grid (g, g) over the canvas, between its cells.

    Parts of the picture that are not on the canvas get zeros.
    """
    shown = canvas.to_original(canvas.picture_box[None])[0]  # the part of the picture that the canvas has
    left, top, right, bottom = (round(float(value)) for value in shown)
    place = tuple((canvas.picture_box * len(grid) / canvas.size).tolist())
    size = max(1, right - left), max(1, bottom - top)
    part = Image.fromarray(grid.astype(np.float32)).resize(size, Image.Resampling.BILINEAR, box=place)
    whole = Image.new("F", (canvas.width, canvas.height))
    whole.paste(part, (left, top))
    return np.asarray(whole)


@contextmanager
def _plain_attention(llm: Any, wanted: bool) -> Iterator[None]:
    """Inside, attention is computed in the way that can give it, where it is wanted."""
    config = llm.config
    before = getattr(config, "_attn_implementation", None)
    if not wanted or before is None:
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
