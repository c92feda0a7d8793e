"""A multimodal LLM but for what it sees: forward modes, splice, packing, losses, generation, checkpoints.

Shapes: B rows (one per sample, always), T text ids, N canvases in the batch, S side of a canvas in pixels, n_i boxes
of canvas i, M placeholders, D hidden size of the LLM, L merged length.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mg_llava.batch import Layout, PaddingSide, TokenCount
from mg_llava.models.assembly import Assembly
from mg_llava.models.generation import Decoding, Prompt, collect, evaluating, generate
from mg_llava.models.interfaces import LLMInputs, Looked, ObjectReader, Seeing, Segment
from mg_llava.models.packing import Packed, pack, pair_cost, training_arguments
from mg_llava.models.splice import Spliced, layout_of, splice
from mg_llava.models.vision import blank_seen, is_split
from mg_llava.pieces import Pieces


class System(Assembly):
    """Base of all systems. One of them says its ``parts``, and writes ``look``, ``connect`` and ``token_count``.

    Its constructor builds encoders and connectors with ``add``, the LLM with ``add_llm``, and ends with ``complete``;
    arguments that all systems take are those of :class:`mg_llava.models.assembly.Assembly`.
    """

    reads_question: ClassVar[bool] = False
    """Whether the tokens of a picture depend on the question, so that questions cannot share them."""

    @property
    def token_count(self) -> TokenCount:
        """How many tokens a placeholder stands for: the one number that data, planner, hooks and predictor ask."""
        raise NotImplementedError

    def tokens_of(self, canvases: int, boxes: int) -> int:
        """Tokens of a placeholder with this many canvases, and boxes on all of them together."""
        return self.token_count(canvases, boxes)

    # -- what a system sees -----------------------------------------------------------------------------------------

    def look(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Looked:
        """Run the encoders: the part that a feature cache can stand for.

        Args:
            canvas: ``(N, 3, S, S)`` uint8, or floating and normalized.
            boxes: N tensors ``(n_i, 4)`` xyxy, canvas pixels.
        """
        raise NotImplementedError

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """From what the encoders give to tokens of the LLM: the segments of each of N canvases.

        Args:
            looked: As :meth:`look` gives it.
            counts: n_i of each canvas.
        """
        raise NotImplementedError

    def blank_looked(self) -> Looked:
        """Zeros in the shapes that :meth:`look` gives of one canvas with one box; maps may be more."""
        encoders = [entry for entry in self.named_parts() if entry[0].role == "encoder"]
        seen = {part.key: blank_seen(encoder.spec, self.connector) for part, encoder in encoders}
        reader, zeros = self.part_of(ObjectReader), self.connector.new_zeros
        return Looked(seen) if reader is None else Looked(seen, zeros(1, reader.in_channels), [zeros(1, 4)])

    def ask(self, looked: Looked, counts: Sequence[int], question: Pieces | None) -> Seeing:
        """As :meth:`connect`, for a system that reads the question about each canvas."""
        return self.connect(looked, counts)

    def word_pieces(self, questions: Sequence[str]) -> Pieces | None:
        """What such a system reads of N questions."""
        return None

    def encode(
        self,
        canvas: Tensor,
        boxes: Sequence[Tensor],
        crops: Sequence[bool] | None = None,
        question: Pieces | None = None,
    ) -> Seeing:
        """The segments of each canvas.

        Args:
            canvas: As for :meth:`look`.
            boxes: As for :meth:`look`.
            crops: Which canvases are object images; None for none.
            question: What is asked about each canvas, for systems that read it.

        Raises:
            ValueError: Object images, and parameters are split over processes.
        """
        if crops is None or not any(crops):
            return self.ask(self.look(canvas, boxes), [len(item) for item in boxes], question)
        if is_split(self):
            raise ValueError("object images are not in every batch, so that ZeRO-3 would wait for ever; use ZeRO-2")
        images = iter(self.see_crops(_those(canvas, crops, True)))
        if all(crops):
            return list(images)
        kept = [item for item, crop in zip(boxes, crops, strict=False) if not crop]
        pictures = iter(self.connect(self.look(_those(canvas, crops, False), kept), list(map(len, kept))))
        return [next(images if crop else pictures) for crop in crops]

    def see_crops(self, canvas: Tensor) -> Seeing:
        """The segments of object images, ``(N, 3, S, S)``.

        Raises:
            ValueError: The system reads none.
        """
        raise ValueError(f"{type(self).__name__} reads no object images; remove <object:i> from the text")

    def as_frame(self, segments: list[Segment]) -> list[Segment]:
        """The segments of a canvas that is a frame of a video; as of any other by default."""
        return segments

    @staticmethod
    def apart(segments: list[Segment]) -> Seeing:
        """The segments of a canvas whose boxes have placeholders of their own: first without them, then each box."""
        boxes = [own.tokens.split(1) for own in segments if own.kind == "object"]
        rest = [segment for segment in segments if segment.kind != "object"]
        return [rest, *([Segment("object", token)] for tokens in boxes for token in tokens)]

    def see(self, batch: Mapping[str, Any]) -> Seeing:
        """The segments of each placeholder of a batch, in order.

        Args:
            batch: A :class:`mg_llava.batch.Batch`; ``seeing`` in it stands for pictures that are encoded already.
        """
        if batch.get("seeing") is not None:
            return batch["seeing"]
        if batch.get("features") is not None:
            canvases = self.cached.see(batch)
        elif batch.get("canvas") is not None and len(batch["canvas"]):
            question = (batch.get("extra") or {}).get("pieces")
            canvases = self.encode(batch["canvas"], batch.get("boxes") or (), batch.get("crops"), question)
        else:
            return []
        if batch.get("frames") is not None:
            canvases = [self.as_frame(own) if one else own for own, one in zip(canvases, batch["frames"], strict=True)]
        media, named = batch.get("media"), batch.get("named")
        if named is not None:
            assert media is None  # frames that share a placeholder have no named boxes
            pairs = zip(canvases, named, strict=True)
            return [own for one, flag in pairs for own in (self.apart(one) if flag else [one])]
        if media is None:
            return canvases
        seeing: Seeing = [[] for _ in range(media[-1] + 1)]
        for place, segments in zip(media, canvases, strict=True):
            seeing[place].extend(segments)
        return seeing

    def condition(self, rows: Sequence[Seeing]) -> AbstractContextManager[Any]:
        """A context in which the LLM reads, for prompts inside its layers; nothing by default.

        Args:
            rows: For each row that the LLM reads the segments of its placeholders.
        """
        return nullcontext()

    def blank(self) -> Tensor:
        """A zero that depends on every trained part that sees, for batches without pictures.

        Processes reduce the same gradients then. Where parameters are split over processes frozen encoders must run
        too, because every process has to take part in gathering them. Nothing of it is observed.
        """
        monitor = dict(self.monitor)
        seeing = self.blank_seeing()
        self.monitor = monitor
        return _zero(seeing)

    def blank_seeing(self) -> Seeing:
        """The segments of a blank canvas with one box, of which :meth:`blank` is made."""
        encoders = [module for part, module in self.named_parts() if part.role == "encoder"]
        trained = any(parameter.requires_grad for encoder in encoders for parameter in encoder.parameters())
        if trained or (is_split(self) and not self.cached.replaces_encoders):
            size = self.canvas_size
            canvas = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device)
            return self.encode(canvas, [torch.zeros(1, 4, device=self.device)])
        return self.connect(self.blank_looked(), [1])

    @torch.no_grad()
    def observe(self, name: str, tokens: Tensor, where: Tensor | None = None) -> None:
        """Keep the mean norm of tokens ``(..., D)``, of those alone where a mask ``(...)`` is true, in training."""
        if self.training and tokens.numel():
            at_least = torch.promote_types(tokens.dtype, torch.float32)
            norms = torch.linalg.vector_norm(tokens.detach(), dim=-1, dtype=at_least)  # no wider copy is made
            mean = norms.mean() if where is None else (norms * where).sum() / where.sum().clamp(min=1)
            self.monitor[f"{name}_norm"] = mean

    # -- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        data: Mapping[str, Any],
        data_samples: Any = None,
        mode: Literal["loss", "predict", "tensor"] = "loss",
    ) -> Any:
        """Run the model on one batch, as :func:`mg_llava.data.collate` makes it.

        Args:
            data: A :class:`mg_llava.batch.Batch`.
            data_samples: Not used.
            mode: ``"loss"`` gives scalars by name; ``"tensor"`` gives logits (B, L, vocabulary) with the
                :class:`Spliced` inputs they belong to; ``"predict"`` gives the generated ids of each row.

        Raises:
            ValueError: For an unknown mode, when placeholders and pictures differ in number, or without losses.
        """
        if mode == "predict":
            return self.generate(data)
        if mode not in ("loss", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', found {mode!r}")
        seeing = self.see(data)
        if mode == "loss":
            read = None if self.llm is None else self.read(data, seeing)
            with nullcontext() if read is None else self.condition(_by_row(seeing, read.layout)):
                found = [loss(self, data, seeing, read) for loss in self.learned()]
            if (weights := data.get("loss_weights")) is not None:
                found = [_weigh(values, weight) for values, weight in zip(found, weights, strict=True)]
            return {name: value for values in found for name, value in values.items()}
        inputs = self.merge(data, seeing=seeing)
        with self.condition(inputs.rows):
            output = self.llm(
                inputs_embeds=inputs.inputs_embeds,
                attention_mask=inputs.attention_mask,
                position_ids=inputs.position_ids,
                use_cache=False,
            )
        return {"logits": output.logits, "inputs": inputs}

    def loss_counts(self, data: Mapping[str, Any]) -> list[int]:
        """For each loss how many items of a batch, which is on the CPU, its mean is over."""
        return [loss.count(data) for loss in self.learned()]

    def read(self, data: Mapping[str, Any], seeing: Seeing) -> LLMInputs:
        """The LLM's inputs in training, packed where that is asked for."""
        anchor, pieces = self._anchor(seeing), _pieces(seeing)
        layout = layout_of(data, pieces)
        rows = layout if self.packing is None else pack(layout, self.packing, pair_cost(self.llm))
        layout = rows.layout if isinstance(rows, Packed) else rows
        return LLMInputs(training_arguments(self.llm, self._embed(data, pieces, layout, anchor), rows), layout, {})

    def merge(
        self, data: Mapping[str, Any], padding_side: PaddingSide = "right", seeing: Seeing | None = None
    ) -> Spliced:
        """Put the tokens of the pictures of a batch into its text; ``seeing`` where they are there already."""
        seeing = self.see(data) if seeing is None else seeing
        anchor, pieces = self._anchor(seeing), _pieces(seeing)
        layout = layout_of(data, pieces, padding_side)
        return Spliced(self._embed(data, pieces, layout, anchor), layout, _by_row(seeing, layout))

    def _anchor(self, seeing: Seeing) -> Tensor | None:
        """A zero for the inputs of the LLM that depends on what they do not depend on otherwise, for its gradients.

        Without pictures these are all trained connectors, else those whose tokens are not in the sequence. It comes
        before the word embeddings: processes gather split parameters in one order.
        """
        if not torch.is_grad_enabled():
            return None
        if not seeing:
            return self.blank()
        placed = {segment.kind for segments in seeing for segment in segments if segment.length}
        rest = [[segment for segment in segments if segment.kind not in placed] for segments in seeing]
        return _zero(rest) if any(rest) else None

    def _embed(
        self, data: Mapping[str, Any], pieces: list[list[Tensor]], layout: Layout, anchor: Tensor | None
    ) -> Tensor:
        """``(B, L, D)``, the rows of a layout."""
        input_ids = data["input_ids"]
        text_embeds = self.llm.get_input_embeddings()(input_ids.clamp(min=0))  # placeholders are replaced below
        embeds = splice(text_embeds, pieces, layout)
        if self.training:
            is_text = input_ids >= 0
            if data.get("attention_mask") is not None:
                is_text = is_text & data["attention_mask"].bool()
            self.observe("text", text_embeds, is_text)
        return embeds if anchor is None else embeds + anchor.to(embeds)

    # -- generation -------------------------------------------------------------------------------------------------

    def prompt(self, data: Mapping[str, Any], seeing: Seeing | None = None) -> Prompt:
        """The LLM's inputs before it answers; ``data`` is as for :meth:`forward`, without labels."""
        inputs = self.merge({**data, "labels": None}, padding_side="left", seeing=seeing)
        return Prompt(inputs.inputs_embeds, inputs.attention_mask)

    @torch.no_grad()
    def generate(self, data: Mapping[str, Any], **given: Any) -> list[Tensor]:
        """Answer every row of a batch; shorter rows are padded on the left.

        Args:
            data: As for :meth:`forward`; ``labels`` is not used.
            **given: Arguments of :class:`~mg_llava.models.generation.Decoding`; greedy unless they say otherwise.

        Returns:
            For each row the new ids, 1-D int64 on the CPU, without an end token.
        """
        decoding = Decoding.of(self.llm, given)
        with evaluating(self):
            inputs = self.merge({**data, "labels": None}, padding_side="left")
            steps = generate(
                self.llm,
                Prompt(inputs.inputs_embeds, inputs.attention_mask),
                decoding,
                condition=lambda rows: self.condition([inputs.rows[row] for row in rows]),
            )
            rows = collect(steps, len(inputs.rows))
        return [torch.tensor(row.ids, dtype=torch.int64) for row in rows]


def _those(canvas: Tensor, flags: Sequence[bool], flag: bool) -> Tensor:
    """The canvases with a flag; nothing waits for the device."""
    return torch.stack([one for one, own in zip(canvas.unbind(), flags, strict=True) if own == flag])


def _pieces(seeing: Seeing) -> list[list[Tensor]]:
    """Tokens of each placeholder, one tensor after the other."""
    return [[segment.tokens for segment in segments if segment.length] for segments in seeing]


def _by_row(seeing: Seeing, layout: Layout) -> list[Seeing]:
    """The segments of the placeholders of each sample."""
    places = iter(seeing)
    return [list(islice(places, count)) for count in layout.placeholders]


def _weigh(values: Mapping[str, Tensor], weight: float | Tensor) -> dict[str, Tensor]:
    """Losses of the same value with a gradient of this weight, so that the log does not show the weight."""
    return {
        name: value.detach() + weight * (value - value.detach()) if name.startswith("loss") else value
        for name, value in values.items()
    }


def _zero(seeing: Seeing) -> Tensor:
    """A zero that depends on all tokens."""
    kinds: dict[str, list[Tensor]] = {}
    for segments in seeing:
        for segment in segments:
            kinds.setdefault(segment.kind, []).append(segment.tokens)
    return 0.0 * torch.stack([torch.cat(tokens).sum(dtype=torch.float32) for tokens in kinds.values()]).sum()
