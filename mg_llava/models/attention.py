"""Attention with one head, by which tokens of one kind read those of another.

Shapes: B rows, Q queries of C_q channels, K things to read of C_k channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SingleHeadAttention(nn.Module):
    """One head as wide as the queries; no projection afterwards, and no residual.

    Each of query, key and value is a LayerNorm and a linear layer with bias.

    Args:
        query_channels: C_q.
        read_channels: C_k.
        zero_init: Begin with values of zero, so that nothing is read before training.
    """

    def __init__(self, query_channels: int, read_channels: int, zero_init: bool = False) -> None:
        super().__init__()
        self.query = _normed_linear(query_channels, query_channels)
        self.key = _normed_linear(read_channels, query_channels)
        self.value = _normed_linear(read_channels, query_channels)
        if zero_init:
            nn.init.zeros_(self.value[1].weight)
            nn.init.zeros_(self.value[1].bias)

    def forward(self, query: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the queries read.

        Args:
            query: ``(B, Q, C_q)``.
            read: ``(B, K, C_k)``.
            mask: ``(B, K)`` bool, false where there is nothing to read; a row without anything gives exact zeros.

        Returns:
            ``(B, Q, C_q)``.
        """
        parts = self.query(query), self.key(read), self.value(read)
        if mask is None:
            return F.scaled_dot_product_attention(*parts)
        has_any = mask.any(dim=1)[:, None, None]
        allowed = mask[:, None, :] | ~has_any  # softmax over nothing is not defined
        return torch.where(has_any, F.scaled_dot_product_attention(*parts, attn_mask=allowed), 0.0)

    def read_once(self, query: Tensor, read: Tensor) -> Tensor:
        """As :meth:`forward` for one query a row, with neither keys nor values of the K things.

        Both are linear in the normalized things: the query is brought to their channels instead, and what it reads of
        them to its own. Needs whole parameters, as it goes around the modules that gather split ones.

        Args:
            query: ``(B, 1, C_q)``.
            read: ``(B, K, C_k)``.

        Returns:
            ``(B, 1, C_q)``.
        """
        (key_norm, key), (value_norm, value) = self.key, self.value
        seen = F.layer_norm(read, read.shape[-1:], eps=key_norm.eps).to(read)  # (B, K, C_k), of keys and values alike
        asked = self.query(query) / math.sqrt(query.shape[-1])  # (B, 1, C_q)
        # of all K the same, which softmax does not see; it has the biases take part, as each parameter must
        offset = F.linear(asked, F.linear(key_norm.bias, key.weight, key.bias)[None])  # (B, 1, 1)
        logits = (asked @ key.weight * key_norm.weight) @ seen.transpose(1, 2) + offset  # (B, 1, K)
        mean = logits.softmax(dim=-1).to(seen) @ seen  # (B, 1, C_k)
        return value(mean * value_norm.weight + value_norm.bias)


def _normed_linear(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_channels), nn.Linear(in_channels, out_channels))
