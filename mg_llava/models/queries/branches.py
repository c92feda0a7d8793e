"""From tokens to prompts of an LLM's layers, and queries that several branches share.

The first is the visual branch of LLaMA-Adapter V2 (arXiv 2304.15010), the second an interpretation of MR-MLLM (arXiv
2406.15768), whose widths and depths are not published.

Shapes: N canvases, P tokens of C channels, Q prompts, S shared queries, w width within, D hidden size of the LLM.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mg_llava.registry import MODELS


@MODELS.register_module()
class PromptBranch(nn.Module):
    """Learned queries and tokens in transformer blocks; the queries' outputs are added to the LLM's prompts.

    Args:
        in_channels: C.
        out_channels: D.
        prompts: Q.
        width: w.
        blocks: Number of blocks.
        heads: Heads of their attention.
    """

    def __init__(
        self, in_channels: int, out_channels: int, prompts: int, width: int = 768, blocks: int = 8, heads: int = 16
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.project = nn.Sequential(nn.Linear(in_channels, width), nn.LayerNorm(width))
        self.query = nn.Parameter(0.02 * torch.randn(prompts, width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(blocks))
        self.out = nn.Sequential(nn.Linear(width, out_channels), nn.LayerNorm(out_channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, P, C)`` to ``(N, Q, D)``."""
        queries = self.query.expand(len(tokens), -1, -1)
        hidden = torch.cat([queries, self.project(tokens)], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(hidden[:, : queries.shape[1]])


@MODELS.register_module()
class SharedQueries(nn.Module):
    """Queries that attend to the tokens of all branches, and read out as prompts.

    The last layer of the reader is zero at the start, so that the branches begin without it.

    Args:
        in_channels: C of each branch.
        out_channels: D.
        prompts: Q.
        queries: S.
        width: w.
        blocks: Number of blocks of self-attention, cross-attention and MLP.
        heads: Heads of their attention.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        prompts: int,
        queries: int = 16,
        width: int = 768,
        blocks: int = 2,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width)) for channels in in_channels
        )
        self.query = nn.Parameter(0.02 * torch.randn(queries, width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.reader = nn.Parameter(0.02 * torch.randn(prompts, width))
        self.read = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, out_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, branches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Read the tokens of each branch, ``(N, P, C)``.

        Returns:
            The shared queries ``(N, S, w)``, and the prompts ``(N, Q, D)`` that are read from them.
        """
        tokens = torch.cat([project(own) for project, own in zip(self.project, branches, strict=True)], dim=1)
        shared = self.query.expand(len(tokens), -1, -1)
        for block in self.blocks:
            shared = block(shared, tokens)
        pooled, _ = self.read(self.reader.expand(len(tokens), -1, -1), shared, shared, need_weights=False)
        return shared, self.out(pooled)
