"""Stage 1 of Lyrics (arXiv 2312.05278): an MQ-Former learns to match pictures and captions, without LLM.

Shapes as in :mod:`mg_llava.models.systems.lyrics`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mg_llava.batch import TokenCount
from mg_llava.models.interfaces import Looked, Part, Seeing, Segment
from mg_llava.models.parts import PartOrConfig, raise_together
from mg_llava.models.queries.mq_former import Source, padded_source
from mg_llava.models.systems.lyrics import Refined
from mg_llava.pieces import Pieces, blank_pieces
from mg_llava.registry import MODELS


class Grounded(NamedTuple):
    """Pictures of a batch with their texts, as the losses of stage 1 read them."""

    sources: list[Source]
    pieces: Pieces
    weight: float
    """0 for a batch without pictures, for which a blank one stands, else 1."""


@MODELS.register_module()
class LyricsPretrain(Refined):
    """Stage 1: the MQ-Former learns to match, tell apart and write pictures and captions with items; without LLM.

    Args:
        llm: None; there for the builders of systems.
        visual_encoder: As of :class:`Lyrics`.
        mq_former: As of :class:`Lyrics`.
        pieces: The vocabulary of the word pieces.
        heads: What the losses read the MQ-Former with.
        detector: As of :class:`Lyrics`.
        segmenter: As of :class:`Lyrics`.
        box_reader: As of :class:`Lyrics`.
        **options: As for :class:`System`; ``losses`` are such as ``AlignmentLoss``, ``CaptionLoss``, ``SpatialLoss``.

    Raises:
        ValueError: With every impossible combination of parts in one message, before weights are read.
    """

    parts = (*Refined.parts, Part("heads", "heads", "connector"))
    llm = None

    def __init__(
        self,
        visual_encoder: PartOrConfig,
        mq_former: PartOrConfig,
        pieces: PartOrConfig,
        heads: PartOrConfig,
        llm: None = None,
        detector: PartOrConfig | None = None,
        segmenter: PartOrConfig | None = None,
        box_reader: PartOrConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if llm is not None:
            raise_together(["llm is given, and LyricsPretrain trains none; use Lyrics, or llm=None"])
        self.add_refiner(visual_encoder, detector, segmenter, box_reader, mq_former, pieces)
        sizes = dict(width=self.mq_former.width, vocabulary=self.mq_former.word_embeddings.num_embeddings)
        self.add("heads", heads, **sizes)
        self.complete()

    @property
    def token_count(self) -> TokenCount:
        """No tokens, for there is no LLM."""
        return TokenCount(per_canvas=0, per_box=0)

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """See :meth:`System.connect`; segments are the sources."""
        sources = self.sources(looked, counts)
        rows = range(len(sources[0].states))
        return [[Segment("source", _row(source, row, counts)) for source in sources] for row in rows]

    def grounded(self, batch: Mapping[str, Any], seeing: Seeing) -> Grounded:
        """The pictures of a batch with their texts; a blank one in place of none.

        Raises:
            ValueError: Pictures have no text.
        """
        if not seeing:
            blank = self.blank_seeing()
            return Grounded(_join(blank), blank_pieces(1, self.device), 0.0)
        pieces = (batch.get("extra") or {}).get("pieces")
        if pieces is None or len(pieces.ids) != len(seeing):
            found = 0 if pieces is None else len(pieces.ids)
            raise ValueError(
                f"{len(seeing)} pictures have {found} captions as word pieces; give the data set "
                "boxes=dict(extra=dict(type='mg_llava.PieceWriter', ...)), and records of one picture each"
            )
        return Grounded(_join(seeing), pieces, 1.0)


def _row(source: Source, row: int, counts: Sequence[int]) -> Tensor:
    """What is not padding of a canvas: with a mask, as many given boxes as there are."""
    return source.states[row] if source.mask is None else source.states[row, : counts[row]]


def _join(seeing: Seeing) -> list[Source]:
    """The sources of all canvases, from their segments."""
    return [padded_source([segment.tokens for segment in group]) for group in zip(*seeing, strict=True)]
