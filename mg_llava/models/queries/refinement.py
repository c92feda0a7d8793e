"""Objects of a detector, classified and placed again by what shared queries and an LLM know of the picture.

An interpretation of MR-MLLM (arXiv 2406.15768), whose head is not published.

Shapes: N canvases, K objects of C_o channels, S shared queries of w channels, L positions of the LLM's text, D its
hidden size, C logits of a class each, or of none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg_llava.models.interfaces import Detected, class_scores
from mg_llava.registry import MODELS

_EDGE = 1e-5


class Sight(NamedTuple):
    """What the objects of one canvas are refined with."""

    found: Detected
    """``(1, K, ...)``, of the detector."""
    queries: Tensor | None
    """``(1, S, w)``; None without shared queries."""


def split_sights(found: Detected | None, queries: Tensor | None) -> list[Sight]:
    """What belongs to each of N canvases; arguments as of :meth:`RefinementHead.forward`."""
    assert found is not None
    parts = [Detected(*own) for own in zip(*(values.split(1) for values in found), strict=True)]
    shared = [None] * len(parts) if queries is None else queries.split(1)
    return [Sight(own, query) for own, query in zip(parts, shared, strict=True)]


def join_sights(sights: Sequence[Sight]) -> tuple[Detected, Tensor | None]:
    """Objects and shared queries of N canvases, from those of each."""
    found = Detected(*(torch.cat(values) for values in zip(*(sight.found for sight in sights), strict=True)))
    queries = [sight.queries for sight in sights if sight.queries is not None]
    return found, torch.cat(queries) if queries else None


@MODELS.register_module()
class RefinementHead(nn.Module):
    """Changes logits and boxes of objects by what each of them reads of the shared queries and the LLM.

    Its last layer is zero at the start, so that objects come back exactly as they are.

    Args:
        object_channels: C_o.
        query_channels: w; None without shared queries.
        hidden_size: D; None without an LLM.
        logits: C.
        has_rest: Whether the last logit is that of no object.
        width: Channels within.
        heads: Heads of the attention.
        reads_language: Whether the LLM's last hidden states are read; without, it need not run.
    """

    def __init__(
        self,
        object_channels: int,
        query_channels: int | None,
        hidden_size: int | None,
        logits: int,
        has_rest: bool,
        width: int = 256,
        heads: int = 8,
        reads_language: bool = True,
    ) -> None:
        super().__init__()
        self.has_rest = has_rest
        self.objects = _into(object_channels + 4, width)
        self.queries = None if query_channels is None else _into(query_channels, width)
        self.language = _into(hidden_size, width) if reads_language and hidden_size is not None else None
        reads = self.queries is not None or self.language is not None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if reads else None
        self.out = nn.Sequential(nn.Linear((1 + reads) * width, width), nn.GELU(), nn.Linear(width, logits + 4))
        nn.init.zeros_(self.out[2].weight)
        nn.init.zeros_(self.out[2].bias)

    def forward(
        self, found: Detected, queries: Tensor | None, language: Tensor | None, mask: Tensor | None
    ) -> Detected:
        """Refine the objects of N canvases.

        Args:
            found: Of the detector.
            queries: ``(N, S, w)``; None without shared queries.
            language: ``(N, L, D)``, last hidden states of the text about each canvas; None where they are not read.
            mask: ``(N, L)`` bool, true where they count.

        Returns:
            The objects in the same order.
        """
        dtype = self.out[0].weight.dtype
        states = self.objects(torch.cat([found.states.to(dtype), found.boxes.to(dtype)], dim=-1))  # (N, K, width)
        if self.attention is not None:
            tokens, hidden = self._read(queries, language, mask, dtype)
            own, _ = self.attention(states, tokens, tokens, key_padding_mask=hidden, need_weights=False)
            states = torch.cat([states, own], dim=-1)
        change = self.out(states).float()
        logits = found.logits + change[..., :-4]
        start = found.boxes.logit(_EDGE)
        boxes = found.boxes + ((start + change[..., -4:]).sigmoid() - start.sigmoid())  # of no change: themselves
        boxes = boxes.clamp(0, 1)
        # a sigmoid rounds by the layout of its input: without a change the difference is zero, whatever it rounds to
        new, old = (class_scores(values, self.has_rest).amax(-1) for values in (logits, found.logits.clone()))
        scores = found.scores + (new - old)
        return Detected(found.states, boxes, scores, logits)

    def _read(
        self, queries: Tensor | None, language: Tensor | None, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """What all objects read ``(N, S + L, width)``, and where it does not count."""
        parts, hidden = [], []
        if self.queries is not None:
            assert queries is not None
            parts.append(self.queries(queries.to(dtype)))
            hidden.append(torch.zeros(parts[0].shape[:2], dtype=torch.bool, device=parts[0].device))
        if self.language is not None:
            assert language is not None and mask is not None
            parts.append(self.language(language.to(dtype)))
            hidden.append(~mask)
        return torch.cat(parts, dim=1), torch.cat(hidden, dim=1)


def _into(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
