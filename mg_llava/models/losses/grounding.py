"""The losses of Lyrics' first stage: match pictures and captions (ITC, ITM), write captions (ICG), find items (MSP).

Shapes: N pictures of this process with a text each, M of all processes, Q queries, E width of the shared embeddings, T
word pieces, V of them in the vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mg_llava.batch import send
from mg_llava.models.interfaces import LLMInputs, Loss, Seeing
from mg_llava.models.losses.gathering import gather_rows
from mg_llava.models.queries.heads import similarity
from mg_llava.models.queries.mq_former import Source
from mg_llava.pieces import CAPTION_START, COORDINATES, PieceKind, Pieces
from mg_llava.registry import MODELS

_LEAST = 1e-4
"""Added to the chance of every negative."""


class GroundedLoss(Loss):
    """Base of these losses; ``measure`` gives the losses of pictures with texts, by name and without a weight."""

    smoothing: float

    def measure(
        self, system: Any, sources: list[Source], pieces: Pieces, planned: Pieces | None = None
    ) -> dict[str, Tensor]:
        """Losses of N pictures and their texts.

        Args:
            system: Has the MQ-Former and the heads.
            sources: What the MQ-Former reads of the pictures.
            pieces: The texts.
            planned: The same on the host, where targets are chosen; None to copy them, for which the host waits.
        """
        raise NotImplementedError

    def count(self, batch: Mapping[str, Any]) -> int:
        """Pictures; see :meth:`Loss.count`."""
        pieces = (batch.get("extra") or {}).get("pieces")
        return 0 if pieces is None else len(pieces.ids)

    def __call__(
        self, system: Any, batch: Mapping[str, Any], seeing: Seeing, read: LLMInputs | None
    ) -> dict[str, Tensor]:
        """See :meth:`Loss.__call__`."""
        sources, pieces, weight = system.grounded(batch, seeing)
        extra = batch.get("extra") or {}
        planned = Pieces(*map(torch.from_numpy, extra["planned"])) if weight and "planned" in extra else None
        found = self.measure(system, sources, pieces, planned)
        anchor = system.heads.zero()
        return {name: weight * value + anchor for name, value in found.items()}


@MODELS.register_module()
class AlignmentLoss(GroundedLoss):
    """Contrast of pictures and texts over all processes (ITC), and a decision about pairs with hard negatives (ITM).

    Args:
        contrast: Weight of ITC.
        match: Weight of ITM; 0 leaves it out.
        smoothing: Of the labels of ITC.
        items: Whether texts have their items. Boxes tell pictures apart without a look at what is in them.
    """

    def __init__(self, contrast: float = 1.0, match: float = 1.0, smoothing: float = 0.1, items: bool = True) -> None:
        self.contrast, self.match, self.smoothing, self.items = contrast, match, smoothing, items

    def measure(
        self, system: Any, sources: list[Source], pieces: Pieces, planned: Pieces | None = None
    ) -> dict[str, Tensor]:
        """``loss_itc`` and ``loss_itm``."""
        former, heads = system.mq_former, system.heads
        pieces = pieces if self.items else pieces.without_items()
        queries = heads.embed_queries(former(sources)[0])  # (N, Q, E)
        texts = heads.embed_text(former.read(pieces))  # (N, E)
        every = gather_rows([queries, texts])
        own = torch.arange(len(texts), device=texts.device) + every.first
        to_texts = similarity(queries, every.tensors[1]).float() / heads.temp  # (N, M)
        to_pictures = similarity(every.tensors[0], texts).float().T / heads.temp  # (N, M)
        losses = [F.cross_entropy(one, own, label_smoothing=self.smoothing) for one in (to_texts, to_pictures)]
        found = {"loss_itc": self.contrast * (losses[0] + losses[1]) / 2}
        if self.match:
            with torch.no_grad():
                chosen = [hard_negatives(one.detach(), own) for one in (to_pictures, to_texts)]
            found["loss_itm"] = self.match * self._matching(system, sources, pieces, chosen, every.first)
        return found

    def _matching(
        self, system: Any, sources: list[Source], pieces: Pieces, chosen: list[Tensor], first: int
    ) -> Tensor:
        """Cross-entropy of true pairs, of texts with chosen pictures, and of pictures with chosen texts."""
        rows = len(pieces.ids)
        own = torch.arange(rows, device=pieces.ids.device) + first
        masks = [torch.ones_like(s.states[..., 0], dtype=torch.bool) if s.mask is None else s.mask for s in sources]
        every = gather_rows([*(source.states for source in sources), *masks, *pieces])
        count = len(sources)
        all_sources = [
            Source(states, None if own_source.mask is None else mask)
            for own_source, states, mask in zip(
                sources, every.tensors[:count], every.tensors[count : 2 * count], strict=True
            )
        ]
        all_pieces = Pieces(*every.tensors[2 * count :])
        is_alone = len(all_pieces.ids) == 1  # nothing to be told apart from
        pictures = own if is_alone else torch.cat([own, chosen[0], own])
        texts = own if is_alone else torch.cat([own, own, chosen[1]])
        queries, _ = system.mq_former(
            [source.take(pictures) for source in all_sources], all_pieces.map(lambda part: part[texts])
        )
        logits = system.heads.match(queries).float()
        if is_alone:
            return 0.0 * logits.sum()
        labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
        return F.cross_entropy(logits, labels)


def hard_negatives(similarities: Tensor, own: Tensor) -> Tensor:
    """For each row another column, drawn by their similarities.

    Args:
        similarities: ``(N, M)``, to all of the other kind.
        own: ``(N,)`` int64, the column that belongs to each row.

    Returns:
        ``(N,)`` int64; each row's own where there is no other.
    """
    chances = similarities.softmax(dim=1) + _LEAST
    if chances.shape[1] > 1:
        chances = chances.scatter(1, own[:, None], 0.0)
    # as torch.multinomial draws one of each row, which looks at the chances on the host before
    return (chances / torch.empty_like(chances).exponential_(1)).argmax(dim=1)


@MODELS.register_module()
class CaptionLoss(GroundedLoss):
    """Writes the caption from the queries, after the items (ICG).

    Args:
        weight: Of the loss.
        smoothing: Of the labels.
    """

    def __init__(self, weight: float = 1.0, smoothing: float = 0.1) -> None:
        self.weight, self.smoothing = weight, smoothing

    def measure(
        self, system: Any, sources: list[Source], pieces: Pieces, planned: Pieces | None = None
    ) -> dict[str, Tensor]:
        """``loss_icg``."""
        begin = system.pieces.words.id_of(CAPTION_START) if len(pieces.ids[0]) > 1 else 0
        ids = torch.where(pieces.kinds == PieceKind.START, begin, pieces.ids)
        _, read = system.mq_former(sources, pieces._replace(ids=ids), sees="left")
        is_target = _on_host(pieces, planned).kinds[:, 1:] == PieceKind.TEXT
        loss = written(system, read[:, :-1], pieces.ids[:, 1:], is_target, self.smoothing)
        return {"loss_icg": self.weight * loss + 0.0 * read.sum()}


@MODELS.register_module()
class SpatialLoss(GroundedLoss):
    """Fills in names and coordinates of items that were masked, from queries, the other items and the caption (MSP).

    Args:
        weight: Of the loss.
        share: Of the names and coordinates, each on its own, that are masked.
        smoothing: Of the labels.
        reference_compat: Mask as the reference does, by an index slip: the closing bracket in place of the fourth
            coordinate.
    """

    def __init__(
        self, weight: float = 1.0, share: float = 0.15, smoothing: float = 0.1, reference_compat: bool = False
    ) -> None:
        self.weight, self.share, self.smoothing, self.reference_compat = weight, share, smoothing, reference_compat

    def mask(self, pieces: Pieces) -> Tensor:
        """``(N, T)`` bool: the pieces that are masked, whole parts; one part at least where there is an item."""
        kinds: tuple[PieceKind, ...] = (PieceKind.NAME, *COORDINATES)
        if self.reference_compat:
            kinds = (*kinds[:-1], PieceKind.CLOSE)
        may = torch.isin(pieces.kinds, torch.tensor(kinds, device=pieces.ids.device))
        drawn = torch.rand(len(pieces.ids), pieces.ids.shape[1] + 1, device=pieces.ids.device)
        drawn = drawn.gather(1, pieces.parts).masked_fill(~may, 2.0)  # the same for all pieces of a part
        return may & (drawn <= drawn.min().clamp(min=self.share))

    def measure(
        self, system: Any, sources: list[Source], pieces: Pieces, planned: Pieces | None = None
    ) -> dict[str, Tensor]:
        """``loss_msp``."""
        masked = self.mask(_on_host(pieces, planned))
        hidden = system.pieces.words.id_of("[MASK]") if len(pieces.ids[0]) > 1 else 0
        given = pieces._replace(ids=torch.where(send(masked, pieces.ids.device), hidden, pieces.ids))
        _, read = system.mq_former(sources, given, sees="queries")
        loss = written(system, read, pieces.ids, masked, self.smoothing)
        return {"loss_msp": self.weight * loss + 0.0 * read.sum()}


def written(system: Any, read: Tensor, ids: Tensor, is_target: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of the pieces that are targets; zero where there is none.

    Args:
        system: Has the heads.
        read: ``(N, T, w)``.
        ids: ``(N, T)`` int64, the right pieces.
        is_target: ``(N, T)`` bool on the host, so that the device need not say how many there are.
        smoothing: Of the labels.
    """
    places = send(torch.from_numpy(np.flatnonzero(is_target.numpy())), read.device)  # (K,)
    logits = system.heads.write(read.flatten(0, 1).index_select(0, places)).float()  # (K, V)
    wanted = ids.flatten().index_select(0, places)
    losses = F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="sum")
    return losses / max(1, len(logits))


def _on_host(pieces: Pieces, planned: Pieces | None) -> Pieces:
    return pieces.map(Tensor.cpu) if planned is None else planned
