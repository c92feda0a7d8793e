"""MG-LLaVA: encode -> fuse -> pool boxes -> splice -> LLM.

Shapes: B rows (one per sample, always), T text ids, N pictures in the batch, S side of the canvas in pixels, P visual
tokens a picture, n_i boxes of picture i, D hidden size of the LLM, L merged length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mg_llava.batch import Layout, PaddingSide
from mg_llava.features import unpack
from mg_llava.models.compilation import compile_parts
from mg_llava.models.generation import Decoding, Prompt, collect, evaluating, generate
from mg_llava.models.losses.language import LossKernel, causal_loss, check_liger, check_loss_settings
from mg_llava.models.packing import Packed, check_packing, pack, pair_cost, training_arguments
from mg_llava.models.parts import ModuleOrConfig, build_part, check_parts, check_readers, log_trained
from mg_llava.models.splice import Spliced, Vision, interleave, layout_of, splice
from mg_llava.models.vision import compare_encoders, describe_encoders, run_encoders
from mg_llava.models.weights.parts import PARTS, load_parts, saved_state_dict, trained_keys
from mg_llava.registry import EXPORTERS, MODELS


@MODELS.register_module()
class MGLLaVA(BaseModel):
    """A multimodal LLM that sees a picture at low resolution, at high resolution, and object by object.

    Leaving out ``fusion``, ``box_projector`` or both gives the ablation's variants; without either the
    high-resolution encoder may be left out too. Encoders are always frozen. Parts can be given built or as configs;
    sizes that one part needs from another are filled in.

    Args:
        llm: Causal LM, e.g. ``dict(type=build_language_model, path=..., tuning="full")``.
        low_res_encoder: Gives ``(N, P, C)`` tokens of the low-resolution view.
        high_res_encoder: Gives stage maps of the canvas.
        fusion: Merges the last stage into the low-resolution tokens.
        box_projector: Gives one token for each box from all stages.
        projector: Projects visual tokens to D.
        pretrained_pth: Checkpoint to start from; it must hold fusion and projectors, and may hold the LLM.
        data_preprocessor: As in mmengine; moves a batch to the device, by default without waiting for it.
        loss_chunk: Positions whose logits exist at once in training; None makes the logits of all positions.
        packing: Length of the rows into which the samples of a batch are packed in training, without padding between
            them; None for a row for each sample.
        loss_kernel: What makes the logits of a chunk and their loss: ``"torch"``, or ``"liger"`` (liger-kernel, CUDA),
            which chooses its own chunks.
        compile_vision: Compile the encoders and the fusion with torch.compile.

    Raises:
        ValueError: With every impossible combination of parts in one message, before the LLM is loaded.
    """

    def __init__(
        self,
        llm: ModuleOrConfig,
        low_res_encoder: ModuleOrConfig,
        projector: ModuleOrConfig,
        high_res_encoder: ModuleOrConfig | None = None,
        fusion: ModuleOrConfig | None = None,
        box_projector: ModuleOrConfig | None = None,
        pretrained_pth: str | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        loss_chunk: int | None = 1024,
        packing: int | None = None,
        loss_kernel: LossKernel = "torch",
        compile_vision: bool = False,
    ) -> None:
        # batches lie in pinned memory: while they are copied the next kernels are queued
        super().__init__(data_preprocessor or dict(type="BaseDataPreprocessor", non_blocking=True))
        check_loss_settings(loss_chunk, loss_kernel)
        if packing is not None and packing < 1:
            raise ValueError(f"packing is {packing}; it must be the length of a row, or None")
        self.loss_chunk, self.packing, self.loss_kernel = loss_chunk, packing, loss_kernel
        check_readers(high_res_encoder, fusion=fusion, box_projector=box_projector)
        self.visual_encoder = low = build_part(low_res_encoder)
        self.visual_encoder_aux = high = build_part(high_res_encoder)
        stage_channels = list(high.stage_channels) if high is not None else []
        fusion_sizes = {"low_channels": low.hidden_size, "high_channels": stage_channels[-1] if stage_channels else 0}
        check_parts(low, high, fusion, fusion_sizes, box_projector, {"stage_channels": stage_channels})
        self.fuse_module = build_part(fusion, **fusion_sizes)
        visual_channels = low.hidden_size if self.fuse_module is None else self.fuse_module.out_channels
        self.llm = build_part(llm)
        if packing is not None:
            check_packing(self.llm)
        if loss_kernel == "liger":
            check_liger(self.llm)
        hidden_size = self.llm.get_input_embeddings().embedding_dim
        self.projector = build_part(projector, in_channels=visual_channels, out_channels=hidden_size)
        self.bbox_projector = build_part(box_projector, stage_channels=stage_channels, out_channels=hidden_size)
        self.monitor: dict[str, Tensor] = {}
        """Detached scalars of the last training step: mean gate, mean norms of low-resolution, box and text tokens and
        of what the fusion adds from the high-resolution map."""
        self._accepted: set[str] = set()
        self._never_encodes = False
        if compile_vision:
            compile_parts(low, high, self.fuse_module)
        self.register_load_state_dict_post_hook(_forget_frozen)
        if pretrained_pth is not None and not next(self.projector.parameters()).is_meta:
            self.load_pretrained(pretrained_pth)
        self._log_trained()

    def _log_trained(self) -> None:
        log_trained(self)

    def init_weights(self) -> None:
        """Change nothing: parts are initialized where they are built, and loaded weights must stay.

        mmengine's runners call this before training. Its own version asks every part in turn, which reaches
        transformers' ``init_weights`` through PEFT and fills the adapters with random numbers.
        """

    @property
    def high_res_size(self) -> int:
        """Side of the canvas that workers send, in pixels."""
        return (self.visual_encoder_aux or self.visual_encoder).image_size

    @property
    def device(self) -> torch.device:
        """Device of the projector, where batches go."""
        return next(self.projector.parameters()).device

    # -- forward ------------------------------------------------------------------------------------------------

    def forward(
        self,
        data: dict[str, Any],
        data_samples: Any = None,
        mode: Literal["loss", "predict", "tensor"] = "loss",
    ) -> Any:
        """Run the model on one batch, as :func:`mg_llava.data.collate` makes it.

        Args:
            data: ``input_ids`` (B, T) int64 with ``IMAGE_TOKEN_INDEX`` where a picture goes; ``attention_mask``
                (B, T) bool; ``labels`` (B, T) int64; ``canvas`` (N, 3, S, S) uint8 and ``boxes``, N tensors
                (n_i, 4) float32 xyxy in canvas pixels, both absent in a batch without pictures.
            data_samples: Not used.
            mode: ``"loss"`` gives ``{"loss": scalar}``; ``"tensor"`` gives logits (B, L, vocabulary) with the
                :class:`Spliced` inputs they belong to; ``"predict"`` gives the generated ids of each row.

        Raises:
            ValueError: For an unknown mode, or when placeholders and pictures differ in number.
        """
        if mode == "predict":
            return self.generate(data)
        if mode not in ("loss", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', found {mode!r}")
        if mode == "loss":
            read, layout = self._read(data)
            losses = causal_loss(self.llm, read, layout.labels, layout.targets, self.loss_chunk, self.loss_kernel)
            return {"loss": losses}
        inputs = self.merge(data)
        output = self.llm(
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
            use_cache=False,
        )
        return {"logits": output.logits, "inputs": inputs}

    def _read(self, data: dict[str, Any]) -> tuple[dict[str, Any], Layout]:
        """What the LLM reads in training, and the layout of it."""
        pieces, anchor = self._look(data)
        layout = layout_of(data, pieces)
        rows = layout if self.packing is None else pack(layout, self.packing, pair_cost(self.llm))
        layout = rows.layout if isinstance(rows, Packed) else rows
        return training_arguments(self.llm, self._embed(data, pieces, anchor, layout), rows), layout

    def merge(self, data: dict[str, Any], padding_side: PaddingSide = "right") -> Spliced:
        """Encode the pictures of a batch and put their tokens into the text; arguments as for :meth:`forward`.

        ``data["vision"]``, a :class:`Vision`, stands for pictures that are encoded already.
        """
        pieces, anchor = self._look(data)
        layout = layout_of(data, pieces, padding_side)
        return Spliced(self._embed(data, pieces, anchor, layout), layout)

    def _look(self, data: dict[str, Any]) -> tuple[list[list[Tensor]], Tensor | None]:
        """Tokens of each placeholder, and a zero for the inputs that depends on every trained part, for gradients."""
        vision = self._see(data)
        # before the word embeddings with and without pictures: processes gather split parameters in one order
        anchor = self._zero_weight(vision) if torch.is_grad_enabled() else None
        return [] if vision is None else vision.pieces(), anchor

    def _embed(
        self, data: dict[str, Any], pieces: list[list[Tensor]], anchor: Tensor | None, layout: Layout
    ) -> Tensor:
        """``(B, L, D)``, the rows of a layout."""
        input_ids = data["input_ids"]
        text_embeds = self.llm.get_input_embeddings()(input_ids.clamp(min=0))  # placeholders are replaced below
        embeds = splice(text_embeds, pieces, layout)
        if self.training:
            is_text = input_ids >= 0
            if data.get("attention_mask") is not None:
                is_text = is_text & data["attention_mask"].bool()
            self._observe("text", text_embeds, is_text)
        return embeds if anchor is None else embeds + anchor.to(embeds)

    def _see(self, data: dict[str, Any]) -> Vision | None:
        """Tokens of the pictures of a batch, from their pixels, from a feature cache, or some from each."""
        if data.get("vision") is not None:
            return data["vision"]
        images, features, boxes = data.get("canvas"), data.get("features"), data.get("boxes", ())
        if features is None:
            return self.encode(images, boxes) if images is not None and len(images) else None
        if images is None:
            return self.encode_features(features, boxes)
        cached = data["cached"]
        seen = self.encode(images, [item for item, is_cached in zip(boxes, cached, strict=True) if not is_cached])
        known = self.encode_features(
            features, [item for item, is_cached in zip(boxes, cached, strict=True) if is_cached]
        )
        return interleave(seen, known, cached)

    def encode(self, images: Tensor, boxes: Sequence[Tensor]) -> Vision:
        """Tokens of the pictures of a batch.

        Args:
            images: ``(N, 3, S, S)`` uint8, or floating and normalized.
            boxes: N tensors ``(n_i, 4)`` xyxy in canvas pixels.
        """
        low, stages = run_encoders(self.visual_encoder, self._high_encoder, images)
        counts = [len(item) for item in boxes]
        if self.bbox_projector is None:
            return self._join(low, stages, None, counts)
        return self._join(low, stages, lambda: self.bbox_projector(stages, boxes, images.shape[-1]), counts)

    def encode_features(self, features: Mapping[str, Any], boxes: Sequence[Tensor]) -> Vision:
        """Tokens of pictures that the encoders saw before; the same as :meth:`encode` of them gives.

        Args:
            features: What a feature cache keeps of N pictures, stacked; see :mod:`mg_llava.features`.
            boxes: N tensors ``(n_i, 4)``, the boxes that were pooled.

        Raises:
            ValueError: These features were not compared with the encoders; see :meth:`accept_features`.
        """
        if features["source"] not in self._accepted:
            raise ValueError(
                "features of a cache were not compared with the model's encoders; add "
                "dict(type='mg_llava.FeatureCacheHook') to custom_hooks, or call the model's accept_features"
            )
        found = unpack(features)
        high = [found.high] if found.high is not None and self.fuse_module is not None else []
        counts = [len(item) for item in boxes]
        if self.bbox_projector is None:
            return self._join(found.low, high, None, counts)
        return self._join(found.low, high, lambda: self.bbox_projector.project(found.pooled), counts)

    def _join(
        self, low: Tensor, stages: Sequence[Tensor], objects: Callable[[], Tensor] | None, counts: list[int]
    ) -> Vision:
        """From what the encoders give to tokens of the LLM; ``objects`` gives the ``(sum n_i, D)`` box tokens."""
        dtype = next(self.projector.parameters()).dtype
        tokens = low.to(dtype)  # (N, P, C)
        self._observe("low", tokens)
        if self.fuse_module is not None:
            tokens = self.fuse_module(tokens, stages[-1].to(dtype))
            self._observe_fusion()
        visual = self.projector(tokens)
        if objects is None:
            return Vision(visual, None)
        box_tokens = objects()
        self._observe("box", box_tokens)
        return Vision(visual, list(box_tokens.split(counts)))

    def accept_features(self, stated: Mapping[str, Any], source: str, alone: bool = True) -> None:
        """Take features of a cache in place of pictures, after a look at whether they are of these encoders.

        Args:
            stated: What the cache says of the encoders that filled it, as :func:`describe_encoders` does.
            source: Name of the cache in batches.
            alone: Whether all pictures of the training come from caches, so that the encoders never run.

        Raises:
            ValueError: They are of other encoders, with all that differs in one message; or parameters are split over
                processes and the encoders run in some of them alone.
        """
        own = describe_encoders(self.visual_encoder, self._high_encoder, self.fuse_module, self.bbox_projector)
        differences = compare_encoders(stated, own)
        if differences:
            raise ValueError(
                f"feature cache {source} was filled with other encoders: {'; '.join(differences)}; fill another "
                "folder with tools/fill_feature_cache.py"
            )
        if not alone and self._is_split:
            raise ValueError(
                "ZeRO-3 needs the same modules to run in every process: use a feature cache for all sources with "
                "pictures and missing_features='error', or ZeRO-2"
            )
        self._accepted.add(source)
        self._never_encodes = alone

    @property
    def _high_encoder(self) -> Any:
        """The high-resolution encoder, where a part reads it."""
        return None if self.fuse_module is None and self.bbox_projector is None else self.visual_encoder_aux

    @property
    def _is_split(self) -> bool:
        """Whether parameters are split over processes, so that all must run the same modules to gather them."""
        return hasattr(next(self.visual_encoder.parameters()), "ds_id")

    def _zero_weight(self, vision: Vision | None) -> Tensor:
        """A zero that depends on every trained part outside the LLM, so that all processes reduce the same gradients.

        In a batch without pictures the parts run on zeros; where parameters are split over processes the encoders
        must run too, because every process has to take part in gathering them.
        """
        if vision is None:
            vision = self._run_on_nothing()
        total = vision.visual.float().sum()
        if vision.boxes is not None:
            total = total + torch.cat(vision.boxes).float().sum()
        return 0.0 * total

    def _run_on_nothing(self) -> Vision:
        parameter = next(self.projector.parameters())
        nothing = parameter.new_zeros
        if self._is_split and not self._never_encodes:
            size = self.high_res_size
            images = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=parameter.device)
            return self.encode(images, [torch.zeros(1, 4, device=parameter.device)])
        low, high = self.visual_encoder, self.visual_encoder_aux
        tokens = nothing(1, low.grid**2, low.hidden_size)
        if self.fuse_module is not None:
            tokens = self.fuse_module(tokens, nothing(1, high.stage_channels[-1], high.grid, high.grid))
        visual = self.projector(tokens)  # the parts in the order of _join, as processes gather them together
        if self.bbox_projector is None:
            return Vision(visual, None)
        return Vision(visual, [self.bbox_projector.project(nothing(1, self.bbox_projector.in_channels))])

    @torch.no_grad()
    def _observe(self, name: str, tokens: Tensor, where: Tensor | None = None) -> None:
        """Keep the mean norm of tokens ``(..., D)``, of those alone where a mask ``(...)`` is true."""
        if self.training and tokens.numel():
            norms = tokens.detach().float().norm(dim=-1)
            mean = norms.mean() if where is None else (norms * where).sum() / where.sum().clamp(min=1)
            self.monitor[f"{name}_norm"] = mean

    def _observe_fusion(self) -> None:
        for name, attribute in (("gate", "last_gate"), ("high_norm", "last_high_norm")):
            value = getattr(self.fuse_module, attribute, None)
            if self.training and value is not None:
                self.monitor[name] = value.float().mean()

    # -- generation ---------------------------------------------------------------------------------------------

    def prompt(self, data: dict[str, Any]) -> Prompt:
        """What the LLM reads of a batch before it answers; ``data`` is as for :meth:`forward`, without labels."""
        inputs = self.merge({**data, "labels": None}, padding_side="left")
        return Prompt(inputs.inputs_embeds, inputs.attention_mask)

    @torch.no_grad()
    def generate(self, data: dict[str, Any], **given: Any) -> list[Tensor]:
        """Answer every row of a batch; shorter rows are padded on the left.

        Args:
            data: As for :meth:`forward`; ``labels`` is not used.
            **given: Arguments of :class:`~mg_llava.models.generation.Decoding`; greedy unless they say otherwise.

        Returns:
            For each row the new ids, 1-D int64 on the CPU, without an end token.
        """
        decoding = Decoding.of(self.llm, given)
        with evaluating(self):
            rows = collect(generate(self.llm, self.prompt(data), decoding), len(data["input_ids"]))
        return [torch.tensor(row.ids, dtype=torch.int64) for row in rows]

    # -- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a checkpoint of this stage holds; see :mod:`mg_llava.models.weights.parts`."""
        state = super().state_dict(*args, **kwargs)
        return state if kwargs.get("prefix") or len(args) > 1 else saved_state_dict(self, state)

    def to_hf(self, cfg: Any, save_dir: str, fp32: bool = False, save_format: str = "xtuner", **kwargs: Any) -> None:
        """What ``xtuner convert pth_to_hf`` calls; see :func:`mg_llava.conversion.pth_to_hf.export_model`."""
        # XTuner asks the model, which may not import the converter: that is a room above
        EXPORTERS.get("export_model")(self, cfg, save_dir, fp32, save_format, **kwargs)

    def load_pretrained(self, path: str, whole: bool = False) -> None:
        """Load a checkpoint of this project or of the reference.

        Args:
            path: mmengine ``.pth``, DeepSpeed folder, safetensors file, or a work directory with one of them.
            whole: Whether everything that this model trains must be in it (to evaluate), or only fusion and
                projectors (to start stage 2 from stage 1).

        Raises:
            FileNotFoundError: If there is no checkpoint at ``path``.
            ValueError: If it is of another kind or does not fit.
        """
        from mg_llava.models.weights.checkpoint import load_training_checkpoint

        vision = [part for part in PARTS if part != "llm" and getattr(self, part, None) is not None]
        state = load_training_checkpoint(path, dtype=None)
        load_parts(self, state, path, require=None if whole else vision)


def _forget_frozen(model: MGLLaVA, incompatible: Any) -> None:
    """Keep weights that come from their own folders, not from checkpoints, out of the list of missing keys."""
    trained = trained_keys(model)
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key in trained]
