"""MG-LLaVA: encode -> fuse -> pool boxes -> splice -> LLM.

Shapes: N pictures in the batch, S side of the canvas in pixels, P visual tokens a picture, C channels, n_i boxes of
picture i, D hidden size of the LLM.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mg_llava.batch import TokenCount
from mg_llava.models.assembly import PROMPTS
from mg_llava.models.conflicts import grid_of, refuse_conflicts, tokens_after
from mg_llava.models.interfaces import Fusion, Looked, ObjectReader, Part, Seeing, Seen, Segment, Spec
from mg_llava.models.parts import PartOrConfig, kind_of, spec_of, taken
from mg_llava.models.system import System
from mg_llava.models.vision import run_encoders
from mg_llava.registry import MODELS

LOW, HIGH = "visual_encoder", "visual_encoder_aux"


@MODELS.register_module()
class MGLLaVA(System):
    """A multimodal LLM that sees a picture at low resolution, at high resolution, and object by object.

    Leaving out ``fusion``, ``box_projector`` or both gives the ablation's variants; without either the
    high-resolution encoder may be left out too. Parts can be given built or as configs; sizes that one part needs from
    another are filled in.

    Args:
        llm: Causal LM, e.g. ``dict(type=build_language_model, path=..., tuning="full")``.
        low_res_encoder: Gives ``(N, P, C)`` tokens of its view.
        projector: Projects visual tokens to D.
        high_res_encoder: Gives stage maps of the canvas.
        fusion: Merges what the high-resolution encoder sees into the low-resolution tokens.
        box_projector: Gives one token for each box.
        merger: Lets visual tokens and features of boxes read each other.
        frame_pooler: Makes fewer tokens of a frame of a video; None for as many as of a picture.
        object_pooler: Makes fewer tokens of an object image, which the low-resolution encoder sees alone; None for a
            model that reads no object images.
        prompts: Prompts inside the layers of the LLM.
        **options: As for :class:`System`.

    Raises:
        ValueError: With every impossible combination of parts in one message, before weights are read.
    """

    parts = (
        Part(LOW, "low_res_encoder", "encoder"),
        Part(HIGH, "high_res_encoder", "encoder"),
        Part("fuse_module", "fusion", "connector"),
        Part("llm", "llm", "llm"),
        Part("projector", "projector", "connector"),
        Part("bbox_projector", "box_projector", "connector"),
        Part("box_fuse_module", "merger", "connector"),
        Part("frame_pooler", "frame_pooler", "connector"),
        Part("object_pooler", "object_pooler", "connector"),
        PROMPTS,
    )

    def __init__(
        self,
        llm: PartOrConfig | None,
        low_res_encoder: PartOrConfig,
        projector: PartOrConfig,
        high_res_encoder: PartOrConfig | None = None,
        fusion: PartOrConfig | None = None,
        box_projector: PartOrConfig | None = None,
        merger: PartOrConfig | None = None,
        frame_pooler: PartOrConfig | None = None,
        object_pooler: PartOrConfig | None = None,
        prompts: PartOrConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        low, high = spec_of("low_res_encoder", low_res_encoder), spec_of("high_res_encoder", high_res_encoder)
        stages = list(high.stage_channels) if high is not None else []
        read = sum(stages if getattr(kind_of(fusion), "reads", "last") == "all" else stages[-1:])
        fusion_sizes = {"low_channels": low.channels, "high_channels": read}
        box_sizes = {"stage_channels": stages, **taken(box_projector, low_channels=low.channels)}
        readers = {
            "fusion": (fusion, Fusion, fusion_sizes),
            "box_projector": (box_projector, ObjectReader, box_sizes),
        }
        poolers = {"frame_pooler": frame_pooler, "object_pooler": object_pooler}
        refuse_conflicts(low, high, readers, merger, poolers, projector, llm, options.get("trains"))
        self.add("low_res_encoder", low_res_encoder)
        self.add("high_res_encoder", high_res_encoder)
        self.add("fusion", fusion, **fusion_sizes)
        hidden = self.add_llm(llm, prompts)
        self._add_projectors(low, hidden, projector, box_projector, merger, box_sizes)
        self.add("frame_pooler", frame_pooler)
        self.add("object_pooler", object_pooler)
        self.complete()

    def _add_projectors(
        self,
        low: Spec,
        hidden: int,
        projector: PartOrConfig,
        boxes: PartOrConfig | None,
        merger: PartOrConfig | None,
        box_sizes: dict[str, Any],
    ) -> None:
        """Build what reads tokens and boxes, in the order in which their weights are drawn."""
        channels = low.channels if self.fuse_module is None else self.fuse_module.out_channels
        self.add("projector", projector, in_channels=channels, out_channels=hidden, **grid_of(projector, low))
        keeps_objects = getattr(kind_of(merger), "keeps_objects", True)
        self.add("box_projector", boxes, out_channels=hidden if keeps_objects else None, **box_sizes)
        sizes = {"object_channels": getattr(self.bbox_projector, "in_channels", 0), "visual_channels": channels}
        self.add("merger", merger, **taken(merger, low_channels=low.channels, **sizes))

    @property
    def token_count(self) -> TokenCount:
        """P tokens for a picture and one for each of its boxes."""
        low = self.visual_encoder.spec.tokens
        tokens = tokens_after(low, self.fuse_module, self.projector)
        per_frame = None if self.frame_pooler is None else self.frame_pooler.out_tokens(tokens)
        per_crop = 0 if self.object_pooler is None else tokens_after(low, self.projector, self.object_pooler)
        return TokenCount(tokens, int(self._has_objects), per_frame=per_frame, per_crop=per_crop)

    @property
    def _has_objects(self) -> bool:
        """Whether the LLM gets tokens of boxes."""
        return self.bbox_projector is not None and getattr(self.box_fuse_module, "keeps_objects", True)

    def look(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Looked:
        """See :meth:`System.look`."""
        is_high_read = self.fuse_module is not None or self.bbox_projector is not None
        seen = run_encoders(self, (LOW, HIGH) if is_high_read else (LOW,), canvas)
        pooled = None if self.bbox_projector is None else self.bbox_projector.pool(seen[HIGH], boxes, canvas.shape[-1])
        if is_high_read:
            seen[HIGH] = Seen(maps=self._read(seen[HIGH].maps))  # the others need not be kept
        return Looked(seen, pooled)

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """See :meth:`System.connect`."""
        dtype = self.connector.dtype
        low = looked.seen[LOW].tokens
        assert low is not None
        low = tokens = low.to(dtype)  # (N, P, C)
        self.observe("low", tokens)
        if self.fuse_module is not None:
            high = Seen(maps=[item.to(dtype) for item in self._read(looked.seen[HIGH].maps)])
            tokens = self.fuse_module(tokens, high)
            self.monitor |= getattr(self.fuse_module, "monitor", {}) if self.training else {}
        pooled = looked.pooled
        if self.box_fuse_module is not None:
            assert pooled is not None
            tokens, merged = self.box_fuse_module(low, tokens, pooled.to(dtype).split(list(counts)))
            pooled = None
            if self._has_objects:
                pooled = merged if isinstance(merged, Tensor) else torch.cat(list(merged))
        visual = [Segment("visual", item) for item in self.projector(tokens)]  # (P', D) each
        if not self._has_objects:
            return [[item] for item in visual]
        projected = self.bbox_projector.project(pooled)  # (sum n_i, D)
        self.observe("box", projected)
        objects = projected.split(list(counts))
        return [[item, Segment("object", own)] for item, own in zip(visual, objects, strict=True)]

    def as_frame(self, segments: list[Segment]) -> list[Segment]:
        """See :meth:`System.as_frame`."""
        if self.frame_pooler is None:
            return segments
        pool = self.frame_pooler
        return [one._replace(tokens=pool(one.tokens)) if one.kind == "visual" else one for one in segments]

    def see_crops(self, canvas: Tensor) -> Seeing:
        """See :meth:`System.see_crops`."""
        if self.object_pooler is None:
            raise ValueError(
                "there are object images, which this model does not read; give it an object_pooler, such as "
                "dict(type='mg_llava.FramePooling', side=4)"
            )
        low = run_encoders(self, (LOW,), canvas)[LOW].tokens
        assert low is not None
        tokens = self.projector(low.to(self.connector.dtype))
        self.observe("crop", tokens)
        return [[Segment("crop", self.object_pooler(own))] for own in tokens]

    def _read(self, stages: Sequence[Any]) -> Sequence[Any]:
        """Of something for each stage, what belongs to those that the fusion reads."""
        if self.fuse_module is None:
            return []
        return stages if self.fuse_module.reads == "all" else stages[-1:]
