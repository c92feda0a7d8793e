"""What the pretraining of Lyrics reads its MQ-Former with: embeddings of both sides, a match, word pieces.

Shapes: N rows, Q queries, T pieces, w width, E width of the shared embeddings, V word pieces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.registry import MODELS


@MODELS.register_module()
class LyricsHeads(nn.Module):
    """The heads of BLIP-2's Q-Former in training.

    Args:
        width: w.
        vocabulary: V.
        embedding: E.
        temperature: Where the learned temperature of the similarities starts; they are divided by it.
    """

    def __init__(self, width: int, vocabulary: int, embedding: int = 256, temperature: float = 0.07) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        self.vision_proj = nn.Linear(width, embedding)
        self.text_proj = nn.Linear(width, embedding)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.full((), temperature))
        self.transform = BertPredictionHeadTransform(BertConfig(hidden_size=width))
        self.decoder = nn.Linear(width, vocabulary)

    def embed_queries(self, queries: Tensor) -> Tensor:
        """``(N, Q, w)`` to ``(N, Q, E)`` of length 1."""
        return F.normalize(self.vision_proj(queries), dim=-1)

    def embed_text(self, read: Tensor) -> Tensor:
        """``(N, T, w)`` to ``(N, E)`` of length 1, of the first piece."""
        return F.normalize(self.text_proj(read[:, 0]), dim=-1)

    def match(self, queries: Tensor) -> Tensor:
        """``(N, Q, w)`` to logits ``(N, 2)`` of no match and match, means over the queries."""
        return self.itm_head(queries).mean(dim=1)

    def write(self, read: Tensor) -> Tensor:
        """``(..., w)`` to logits ``(..., V)``."""
        return self.decoder(self.transform(read))

    def zero(self) -> Tensor:
        """A zero that depends on all of them, for losses that read some."""
        blank = self.temp.new_zeros(1, 1, self.itm_head.in_features)
        found = [self.embed_queries(blank), self.embed_text(blank), self.match(blank), self.write(blank)]
        return 0.0 * (sum(item.float().sum() for item in found) + self.temp)


def similarity(queries: Tensor, texts: Tensor) -> Tensor:
    """Of every picture ``(N, Q, E)`` to every text ``(M, E)``: that of its nearest query, ``(N, M)``."""
    return torch.einsum("nqe,me->nmq", queries, texts).amax(dim=-1)
