"""How much each visual token and each box token contributed to an answer: gradient x input.

With S the log-probability of the answer's ids, read after the question, and e_t the embedding of token t in the
sequence of the LLM, the contribution of t is the scalar product of dS/de_t and e_t: how S changes, to first order and
in nats, with the length of e_t. A positive one speaks for the answer, a negative one against it. Contributions are
those of the LLM's reading alone; what encoders and connectors put into a token is not taken apart.

Shapes: L positions of the LLM, D its hidden size, k ids of the answer, n boxes of a picture, g side of the grid of
visual tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg_llava.inference.answering import Answering
from mg_llava.inference.batching import PictureGroup, PreparedRequest
from mg_llava.inference.encoding import EncodedRequest
from mg_llava.inference.requests import Answer, Request
from mg_llava.models.generation import evaluating
from mg_llava.models.splice import Spliced

METHOD = (
    "Gradient x input: the share of a token in the log-probability of the answer, to first order, in nats. Positive "
    "values speak for the answer, negative ones against it."
)


@dataclass(frozen=True)
class PictureShares:
    """Contributions of the tokens of a picture.

    Attributes:
        objects: (n,) of its box tokens, in their order; that of the stand-in where there was no box.
        regions: (g, g) of its visual tokens, rows from the top of the canvas; None where they are on no grid of it.
        visual: Sum over all visual tokens.
    """

    objects: np.ndarray
    regions: np.ndarray | None
    visual: float


@dataclass(frozen=True)
class Attribution:
    """Contributions to an answer.

    Attributes:
        score: Log-probability of the answer, in nats.
        pictures: Of each picture.
        text: Sum over the tokens of the text, the answer's included.
    """

    score: float
    pictures: tuple[PictureShares, ...]
    text: float


def attribute(predictor: Any, request: Request, answer: Answer) -> Attribution:
    """The contributions to an answer that a predictor gave to a request.

    Takes one pass of the LLM forward and one back, with memory for both.

    Raises:
        PictureError: A picture cannot be read.
        ValueError: The answer is empty, or the request is wrong.
    """
    if not answer.token_ids:
        raise ValueError("the answer is empty: there is nothing to attribute")
    answering = predictor.answering({}, 1)
    with evaluating(predictor.model):
        one = encode_request(answering, PreparedRequest(predictor.front_end, 0, request))
        return _contributions(predictor.model, one, answer.token_ids)


def encode_request(answering: Answering, prepared: PreparedRequest) -> EncodedRequest:
    """A request with its pictures as tokens.

    Raises:
        PictureError: A picture cannot be read.
        ValueError: It is too long.
    """
    group, failed = PictureGroup([prepared]), list[Any]()
    found = list(answering.encoded([(group, group.load())], failed))
    for _, error in failed:
        raise error
    return found[0]


def _contributions(model: Any, one: EncodedRequest, answer: Sequence[int]) -> Attribution:
    inputs = merge_answer(model, one, answer)
    with torch.enable_grad():
        embeds = inputs.inputs_embeds.detach().requires_grad_()
        score = answer_score(model, inputs, embeds, answer)
        (gradient,) = torch.autograd.grad(score, embeds)
    shares = (gradient.double() * embeds.detach().double()).sum(dim=-1)[0].cpu()  # (L,)
    places = token_places(one, inputs)
    pictures = tuple(_shares(model, {kind: shares[own] for kind, own in kinds.items()}) for kinds in places)
    of_pictures = sum((shares[own].sum() for kinds in places for own in kinds.values()), torch.zeros(()))
    return Attribution(float(score.detach()), pictures, float(shares.sum() - of_pictures))


def merge_answer(model: Any, one: EncodedRequest, answer: Sequence[int]) -> Spliced:
    """The row that the LLM reads of a request and an answer to it, whose ids end it."""
    ids = torch.tensor([[*one.prepared.ids, *answer]])
    data = model.data_preprocessor({"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}, False)
    with torch.no_grad():
        return model.merge(data, seeing=one.seeing)


def token_places(one: EncodedRequest, inputs: Spliced) -> list[dict[str, Tensor]]:
    """For each placeholder of the row of a request the positions of its tokens by their kind, int64 on the CPU."""
    source = inputs.layout.source[0].cpu()
    positions = source.argsort()[-sum(segment.length for own in one.seeing for segment in own) or len(source) :]
    found, start = [], 0
    for segments in one.seeing:
        kinds: dict[str, list[Tensor]] = {"object": [], "visual": []}
        for segment in segments:
            kinds.setdefault(segment.kind, []).append(positions[start : start + segment.length])
            start += segment.length
        none = torch.zeros(0, dtype=torch.int64)
        found.append({kind: torch.cat([none, *own]) for kind, own in kinds.items()})
    return found


def visual_grid(model: Any, tokens: int) -> int | None:
    """Side of the grid that so many visual tokens of a canvas are on; None where they are on none."""
    grids = [part.spec.grid for entry, part in model.named_parts() if entry.role == "encoder" and part.spec.tokens]
    return next((side for side in grids if side**2 == tokens), None)


def answer_score(model: Any, inputs: Spliced, embeds: Tensor, answer: Sequence[int]) -> Tensor:
    """Log-probability of an answer that ends the row of ``inputs``, whose embeddings are ``(1, L, D)`` here."""
    with model.condition(inputs.rows):
        output = model.llm(
            inputs_embeds=embeds,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
            use_cache=False,
        )
    return answer_log_probabilities(output.logits, answer).sum()


def answer_log_probabilities(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """``(k,)`` log-probabilities of the ids that end a row, by its logits ``(1, L, V)``."""
    told = logits[0, -len(answer) - 1 : -1].float()  # each position tells of the next
    ids = torch.tensor(answer, device=told.device)
    return told.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]


def _shares(model: Any, kinds: dict[str, Tensor]) -> PictureShares:
    visual, objects = kinds["visual"].numpy(), kinds["object"].numpy()
    grid = visual_grid(model, len(visual))
    return PictureShares(objects, None if grid is None else visual.reshape(grid, grid), float(visual.sum()))
