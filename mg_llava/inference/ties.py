"""Close calls of greedy decoding: where two tokens are so near that rounding may decide between them.

The same row gives slightly different logits in batches of different size. Where the two best tokens lie further apart
than that, the batch does not matter; where they do not, the row is decided alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

MARGIN = 2e-3
"""Least lead of the best logit that float32 rounding cannot overturn, with room to spare: differences of 1e-5 to 1e-4
were seen."""


class Leads(LogitsProcessor):
    """Keeps the smallest lead of the best token over the second in each row, until the row's end.

    Args:
        ends: End tokens; what follows one does not count.

    Attributes:
        smallest: (B,) float32; infinite before the first token.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = torch.tensor(list(ends), dtype=torch.int64)
        self.smallest = torch.zeros(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Look at (B, vocabulary) ``scores`` after the (B, new) ``input_ids``, and leave them as they are."""
        if len(self.smallest) != len(scores):
            self.smallest = scores.new_full((len(scores),), torch.inf, dtype=torch.float32)
            self.ends = self.ends.to(scores.device)
        best = scores.float().topk(2, dim=-1).values  # (B, 2)
        lead = best[:, 0] - best[:, 1]
        if input_ids.shape[1]:
            lead = lead.masked_fill(torch.isin(input_ids[:, -1], self.ends), torch.inf)
        self.smallest = torch.minimum(self.smallest, lead)
        return scores
