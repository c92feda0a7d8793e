"""The MQ-Former of Lyrics (arXiv 2312.05278): a Q-Former with groups of queries, which read a source each.

It is the Q-Former of transformers with another cross-attention. Shapes: N canvases, P_g tokens of source g with C_g
channels, Q queries of all groups, T word pieces, w width.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mg_llava.batch import send
from mg_llava.compat import as_attention_gives, read_attention
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.loading import on_meta
from mg_llava.pieces import Pieces, WordPieces, stack_pieces
from mg_llava.registry import MODELS

Sees = Literal["all", "left", "queries"]
"""How queries and text attend to each other: ``all`` to all; with ``left`` and ``queries`` no text reaches the
queries, and text sees them and the text to its left, or all text."""


class Source(NamedTuple):
    """Tokens that a group of queries reads."""

    states: Tensor
    """``(N, P_g, C_g)``"""
    mask: Tensor | None = None
    """``(N, P_g)`` bool, false on padding; None where nothing is padded."""

    def take(self, rows: Tensor) -> "Source":
        """The source of other canvases, ``(M,)`` int64 numbers of these."""
        return Source(self.states[rows], None if self.mask is None else self.mask[rows])


def padded_source(rows: Sequence[Tensor]) -> Source:
    """Objects ``(n_i, C)`` of N canvases, padded to the most, and to one where there is none."""
    most = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
    filler = rows[0].new_zeros(most, rows[0].shape[1])  # a row that has the length of all
    states = pad_sequence([filler, *rows], batch_first=True)[1:]
    counts = send(torch.tensor([len(row) for row in rows]), states.device)
    return Source(states, torch.arange(most, device=states.device) < counts[:, None])


class GroupedCrossAttention(nn.Module):
    """Stands for the cross-attention of a Q-Former's layer: each group of queries attends to its own source.

    Args:
        attentions: A ``Blip2QFormerAttention`` for each group.
        sizes: Queries of each group.
    """

    def __init__(self, attentions: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.sizes = list(sizes)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Sequence[Tensor] = (),
        encoder_attention_mask: Sequence[Tensor] = (),
        **_: Any,
    ) -> Any:
        """``(N, Q, w)`` to the same; the source and the additive mask of each group come as lists."""
        groups = zip(
            self.attentions,
            hidden_states.split(self.sizes, dim=1),
            encoder_hidden_states,
            encoder_attention_mask,
            strict=True,
        )
        read = [
            read_attention(attend(own, encoder_hidden_states=states, encoder_attention_mask=mask))
            for attend, own, states, mask in groups
            if own.shape[1]
        ]
        return as_attention_gives(torch.cat(read, dim=1))


@MODELS.register_module()
class MQFormer(nn.Module):
    """Groups of learned queries that read tokens of encoders, and word pieces.

    Args:
        in_channels: C of each source.
        queries: Queries of each group.
        width: w.
        layers: Number of layers.
        heads: Heads of attention.
        intermediate: Width within the feed-forward networks, of which queries and text have their own.
        frequency: Every how many layers queries read their sources.
        vocabulary: Number of word pieces.
        positions: Number of text positions.
        dropout: Share of dropped activations.
        reference_compat: Queries start as zeros, as in the reference, so that those of a group stay alike but for
            dropout.
        bert: Folder or hub name of a BERT of these sizes to start from, as BLIP-2 does: queries get its feed-forward
            networks too. None to start anew.

    Raises:
        FileNotFoundError: There is no such BERT.
        ValueError: Sources and groups differ in number, or the BERT has other sizes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        queries: Sequence[int] = (32, 64),
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        frequency: int = 2,
        vocabulary: int = 30523,
        positions: int = 512,
        dropout: float = 0.1,
        reference_compat: bool = False,
        bert: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerAttention, Blip2QFormerModel

        if len(in_channels) != len(queries):
            raise ValueError(
                f"{len(queries)} groups of queries {list(queries)} for {len(in_channels)} sources of {in_channels} "
                "channels; give one number of queries for each source"
            )
        settings = dict(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            cross_attention_frequency=frequency,
            max_position_embeddings=positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            use_qformer_text_input=True,
            attn_implementation="eager",  # masks are added to scores
        )
        self.sizes = list(queries)
        configs = [Blip2QFormerConfig(encoder_hidden_size=channels, **settings) for channels in in_channels]
        self.query_tokens = nn.Parameter(torch.zeros(1, sum(queries), width))
        if not reference_compat:
            nn.init.normal_(self.query_tokens, std=0.02)
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.qformer = Blip2QFormerModel(configs[0])
        for layer in self.qformer.encoder.layer:
            if layer.has_cross_attention:
                attentions = [Blip2QFormerAttention(config, is_cross_attention=True) for config in configs]
                layer.crossattention = GroupedCrossAttention(attentions, queries)
        self.apply(self.qformer._init_weights)
        if bert is not None and not on_meta():
            start_from_bert(self, bert)

    @classmethod
    def portable(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Its config without what its weights once started from."""
        return {name: value for name, value in config.items() if name != "bert"}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, which sources are cast to."""
        return self.query_tokens.dtype

    @property
    def width(self) -> int:
        """W."""
        return self.query_tokens.shape[-1]

    def forward(
        self, sources: Sequence[Source], text: Pieces | None = None, sees: Sees = "all"
    ) -> tuple[Tensor, Tensor]:
        """Let the queries read their sources, beside or before a text.

        Args:
            sources: One for each group.
            text: Word pieces; None for the queries alone.
            sees: How both attend to each other.

        Returns:
            The queries ``(N, Q, w)``, and the text ``(N, T, w)``, where T may be 0.
        """
        rows, count = len(sources[0].states), self.query_tokens.shape[1]
        queries = self.query_tokens.expand(rows, -1, -1)
        mask = queries.new_ones(rows, count)
        states = [source.states.to(self.dtype) for source in sources]
        masks = [
            state.new_ones(state.shape[:2]) if source.mask is None else source.mask.to(self.dtype)
            for source, state in zip(sources, states, strict=True)
        ]
        hidden = queries
        if text is not None:
            hidden = torch.cat([queries, self._embed(text)], dim=1)
            mask = torch.cat([mask, text.mask.to(mask)], dim=1)
            if sees != "all":
                mask = mask[:, None] * _reach(count, text.ids.shape[1], sees, mask.device)
        read = self._encode(
            hidden, mask, query_length=count, encoder_hidden_states=states, encoder_attention_mask=masks
        )
        return read[:, :count], read[:, count:]

    def read(self, text: Pieces) -> Tensor:
        """Text alone, ``(N, T, w)``."""
        return self._encode(self._embed(text), text.mask.to(self.dtype), query_length=0)

    def _encode(self, hidden: Tensor, mask: Tensor, **sources: Any) -> Tensor:
        """The forward pass of a ``Blip2QFormerModel``, which takes no lists of masks since transformers 5.

        Args:
            hidden: ``(N, L, w)`` embeddings.
            mask: ``(N, L)`` or ``(N, L, L)`` float, 1 for what is looked at.
            **sources: Arguments of its encoder; masks of sources are like ``mask``.
        """
        hidden = self.qformer.dropout(self.qformer.layernorm(hidden))
        mask = (mask[:, None] if mask.ndim == 3 else mask[:, None, None]).to(self.dtype)
        if "encoder_attention_mask" in sources:
            least = torch.finfo(self.dtype).min
            sources["encoder_attention_mask"] = [
                (1.0 - own[:, None, None]) * least for own in sources["encoder_attention_mask"]
            ]
        given: Tensor = self.qformer.encoder(hidden, (1.0 - mask) * -10000.0, **sources).last_hidden_state
        return given

    def _embed(self, text: Pieces) -> Tensor:
        return self.word_embeddings(text.ids) + self.position_embeddings(text.positions)


@torch.no_grad()
def start_from_bert(former: MQFormer, path: str) -> None:
    """Copy BERT's embeddings, self-attention and feed-forward networks into an MQ-Former.

    Raises:
        FileNotFoundError: There is no such folder, and the hub has none.
        ValueError: It lacks a tensor, or one has another shape; a vocabulary may be shorter.
    """
    stored = {name.removeprefix("bert."): tensor for name, tensor in map_folder(find_folder(path)).items()}
    own = former.state_dict(keep_vars=True)
    wanted = {f"{kind}_embeddings.weight": f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position")}
    wanted |= {f"qformer.layernorm.{end}": f"embeddings.LayerNorm.{end}" for end in ("weight", "bias")}
    for name in own:
        if name.startswith("qformer.encoder.") and ".crossattention." not in name:
            theirs = name.removeprefix("qformer.").replace(".attention.attention.", ".attention.self.")
            wanted[name] = theirs.replace("intermediate_query", "intermediate").replace("output_query", "output")
    for name, theirs in wanted.items():
        target, found = own[name], stored.get(theirs)
        rows = slice(None if found is None else found.shape[0]) if name == "word_embeddings.weight" else slice(None)
        if found is None or target[rows].shape != found.shape:
            shape = "is absent" if found is None else f"has shape {tuple(found.shape)}, not {tuple(target.shape)}"
            raise ValueError(f"{path} is no BERT to start this MQ-Former from: {theirs} {shape}")
        target[rows] = found.read().to(target)


def _reach(queries: int, pieces: int, sees: Sees, device: torch.device) -> Tensor:
    """``(Q + T, Q + T)`` float: who looks (rows) at whom (columns), where no text reaches the queries."""
    reach = torch.ones(queries + pieces, queries + pieces, device=device)
    reach[:queries, queries:] = 0
    if sees == "left":
        reach[queries:, queries:].tril_()
    return reach


@MODELS.register_module()
class PieceReader(nn.Module):
    """Questions to word pieces of an MQ-Former; it has no weights, and reads its vocabulary when it is asked.

    Args:
        vocabulary: Folder or hub name of a BERT tokenizer, or all words in their order.
        most: Pieces of a question.
    """

    def __init__(self, vocabulary: str | Sequence[str], most: int = 128) -> None:
        super().__init__()
        self.vocabulary, self.most = vocabulary, most

    @classmethod
    def portable(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Its config with the words themselves in place of a folder of this machine."""
        return {**config, "vocabulary": WordPieces(config["vocabulary"]).words}

    @cached_property
    def words(self) -> WordPieces:
        """Its vocabulary.

        Raises:
            ValueError: It cannot be read.
        """
        return WordPieces(self.vocabulary)

    def forward(self, questions: Sequence[str]) -> Pieces:
        """The pieces of N questions, on the CPU."""
        return stack_pieces([self.words.question(text, self.most) for text in questions])
