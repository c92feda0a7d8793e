"""Lyrics (arXiv 2312.05278): an MQ-Former reads a picture, the objects of a detector and text; then an LLM reads it.

Stage 1 has no LLM (:mod:`mg_llava.models.systems.lyrics_pretrain`). In stage 2
(:class:`Lyrics`) the question enters the MQ-Former, whose queries are the tokens of the picture.

Shapes: N canvases, P tokens of C channels, K or n_i objects of C_o channels, Q queries of width w, D hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.ops import box_convert

from mg_llava.batch import TokenCount
from mg_llava.models.conflicts import unread_faults
from mg_llava.models.interfaces import Looked, ObjectReader, Part, Seeing, Segment
from mg_llava.models.parts import PartOrConfig, check_part, is_of, raise_together, spec_of, try_part
from mg_llava.models.queries.mq_former import Source, padded_source
from mg_llava.models.system import System
from mg_llava.models.vision import run_encoders
from mg_llava.pieces import Pieces, blank_pieces
from mg_llava.registry import MODELS

_VISUAL, _DETECTOR, _SEGMENTER = "visual_encoder", "detector", "segmenter"
_BOX = 4


class Refined(System):
    """Base of both stages: the encoders, whose outputs are the sources of an MQ-Former.

    Objects are those that a detector finds, or, where ``detector`` gives maps, the given boxes, pooled from them by
    ``box_reader``. Their boxes stand behind their states, as shares of the canvas (cxcywh).
    """

    parts: ClassVar[tuple[Part, ...]] = (
        Part(_VISUAL, "visual_encoder", "encoder"),
        Part(_DETECTOR, "detector", "encoder"),
        Part(_SEGMENTER, "segmenter", "encoder"),
        Part("box_reader", "box_reader", "connector"),
        Part("mq_former", "mq_former", "connector"),
        Part("pieces", "pieces", "connector"),
    )

    def add_refiner(
        self,
        visual_encoder: PartOrConfig,
        detector: PartOrConfig | None,
        segmenter: PartOrConfig | None,
        box_reader: PartOrConfig | None,
        mq_former: PartOrConfig,
        pieces: PartOrConfig,
    ) -> None:
        """Build the encoders and the MQ-Former.

        Raises:
            ValueError: With every impossible combination of parts in one message, before weights are read.
        """
        given = {_VISUAL: visual_encoder, _DETECTOR: detector, _SEGMENTER: segmenter}
        specs = {name: spec_of(name, part) for name, part in given.items()}
        raise_together(_faults(specs, box_reader, self._options[1] or ()))
        for name, part in given.items():
            self.add(name, part)
        stages = [] if specs[_DETECTOR] is None else list(specs[_DETECTOR].stage_channels)
        self.add("box_reader", box_reader, stage_channels=stages, out_channels=None)
        channels = [specs[_VISUAL].channels]
        if self.box_reader is not None:
            channels.append(self.box_reader.in_channels + _BOX)
        elif specs[_DETECTOR] is not None:
            channels.append(specs[_DETECTOR].object_channels + _BOX)
        if specs[_SEGMENTER] is not None:
            channels.append(specs[_SEGMENTER].channels)
        self.add("mq_former", mq_former, in_channels=channels)
        self.add("pieces", pieces)

    def look(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Looked:
        """See :meth:`System.look`; boxes are read where the objects are not a detector's own."""
        encoders = [part.key for part, _ in self.named_parts() if part.role == "encoder"]
        seen = run_encoders(self, encoders, canvas)
        if self.box_reader is None:
            return Looked(seen)
        return Looked(seen, self.box_reader.pool(seen[_DETECTOR], boxes, canvas.shape[-1]), boxes)

    def sources(self, looked: Looked, counts: Sequence[int]) -> list[Source]:
        """What the groups of queries read of N canvases: tokens, objects, tokens of the segmenter."""
        dtype, found = self.mq_former.dtype, []
        tokens = looked.seen[_VISUAL].tokens
        assert tokens is not None
        found.append(Source(tokens.to(dtype)))
        if self.box_reader is not None:
            assert looked.pooled is not None
            sides = looked.pooled.new_zeros(0, _BOX) if not len(looked.boxes) else torch.cat(list(looked.boxes))
            places = box_convert(sides / self.canvas_size, "xyxy", "cxcywh")
            rows = torch.cat([looked.pooled, places.to(looked.pooled)], dim=-1).to(dtype)
            found.append(padded_source(rows.split(list(counts))))
        elif self.detector is not None:
            detected = looked.seen[_DETECTOR].detected
            assert detected is not None
            found.append(Source(torch.cat([detected.states.to(dtype), detected.boxes.to(dtype)], dim=-1)))
        if self.segmenter is not None:
            tokens = looked.seen[_SEGMENTER].tokens
            assert tokens is not None
            found.append(Source(tokens.to(dtype)))
        return found


@MODELS.register_module()
class Lyrics(Refined):
    """Stage 2: a picture is Q tokens, for which the MQ-Former reads the question.

    Args:
        llm: Causal LM.
        visual_encoder: Gives tokens of the canvas: CLIP, or EVA ViT-g.
        mq_former: Says Q.
        pieces: Questions to word pieces of the MQ-Former.
        projector: From queries to D.
        detector: Gives objects, or maps from which ``box_reader`` pools them; None leaves the group out.
        segmenter: Gives tokens of a third group; None leaves it out.
        box_reader: Pools given boxes from the maps of ``detector``.
        **options: As for :class:`System`.

    Raises:
        ValueError: With every impossible combination of parts in one message, before weights are read.
    """

    reads_question = True
    left_behind = ("heads",)
    parts = (*Refined.parts, Part("projector", "projector", "connector"), Part("llm", "llm", "llm"))

    def __init__(
        self,
        llm: PartOrConfig | None,
        visual_encoder: PartOrConfig,
        mq_former: PartOrConfig,
        pieces: PartOrConfig,
        projector: PartOrConfig,
        detector: PartOrConfig | None = None,
        segmenter: PartOrConfig | None = None,
        box_reader: PartOrConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.add_refiner(visual_encoder, detector, segmenter, box_reader, mq_former, pieces)
        hidden = self.add_llm(llm)
        self.add("projector", projector, in_channels=self.mq_former.width, out_channels=hidden)
        self.complete()

    @property
    def token_count(self) -> TokenCount:
        """Q tokens."""
        return TokenCount(per_canvas=sum(self.mq_former.sizes), per_box=0)

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """See :meth:`System.connect`; of pictures without a question."""
        return self.ask(looked, counts, None)

    def ask(self, looked: Looked, counts: Sequence[int], question: Pieces | None) -> Seeing:
        """See :meth:`System.ask`."""
        sources = self.sources(looked, counts)
        states = sources[0].states
        text = blank_pieces(len(states), states.device) if question is None else question
        queries, read = self.mq_former(sources, text)
        self.observe("query", queries)
        if torch.is_grad_enabled():
            queries = queries + 0.0 * read.sum()  # what reads the text in the last layer alone has a gradient too
        return [[Segment("query", item)] for item in self.projector(queries)]

    def word_pieces(self, questions: Sequence[str]) -> Pieces:
        """See :meth:`System.word_pieces`."""
        pieces: Pieces = self.pieces(questions)
        return pieces


def _faults(specs: Mapping[str, Any], box_reader: Any, trains: Sequence[str]) -> list[str]:
    """Reasons why these encoders cannot be the sources of an MQ-Former, or be trained as they are read."""
    problems = [
        f"{name} is {specs[name].type}, which gives no tokens; use one such as CLIPEncoder"
        for name in (_VISUAL, _SEGMENTER)
        if specs[name] is not None and not specs[name].tokens
    ]
    detector = specs[_DETECTOR]
    if detector is None and box_reader is not None:
        problems.append("box_reader pools from the maps of detector, which is None; give both or neither")
    if detector is not None and not detector.objects:
        if box_reader is None or not detector.stage_channels:
            problems.append(
                f"detector is {detector.type}, which detects nothing; use TransformerDetector, or an encoder with "
                "maps and a box_reader"
            )
    if detector is not None and detector.objects and box_reader is not None:
        problems.append(f"detector is {detector.type}, which finds its own objects; set box_reader=None")
    stages: dict[str, Any] = {} if detector is None else {"stage_channels": list(detector.stage_channels)}
    problems += check_part("box_reader", box_reader, ObjectReader, stages)
    if detector is not None and detector.stage_channels and is_of(box_reader, ObjectReader):
        reader, faults = try_part("box_reader", box_reader, out_channels=None, **stages)
        problems += faults
        problems += unread_faults(_DETECTOR, detector, box_reader, reader) if _DETECTOR in trains else []
    return problems
