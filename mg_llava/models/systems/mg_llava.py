"""MG-LLaVA: encode -> fuse -> pool boxes -> splice -> LLM.

Shapes: N pictures in the batch, S side of the canvas in pixels, P visual tokens a picture, C channels, n_i boxes of
picture i, D hidden size of the LLM.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mg_llava.batch import TokenCount
from mg_llava.models.interfaces import Fusion, Looked, Merger, ObjectReader, Part, Seeing, Seen, Segment
from mg_llava.models.parts import PartOrConfig, check_part, kind_of, raise_together, spec_of
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
        merger: Lets visual tokens and tokens of boxes read each other.
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
        Part("merger", "merger", "connector"),
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
        **options: Any,
    ) -> None:
        super().__init__(**options)
        low, high = spec_of("low_res_encoder", low_res_encoder), spec_of("high_res_encoder", high_res_encoder)
        stages = list(high.stage_channels) if high is not None else []
        fusion_sizes = {"low_channels": low.channels, "high_channels": stages[-1] if stages else 0}
        self._check(low, high, fusion, fusion_sizes, box_projector, {"stage_channels": stages}, merger)
        self.add("low_res_encoder", low_res_encoder)
        self.add("high_res_encoder", high_res_encoder)
        self.add("fusion", fusion, **fusion_sizes)
        hidden = self.add_llm(llm)
        channels = low.channels if self.fuse_module is None else self.fuse_module.out_channels
        self.add("projector", projector, in_channels=channels, out_channels=hidden)
        self.add("box_projector", box_projector, stage_channels=stages, out_channels=hidden)
        self.add("merger", merger, channels=hidden)
        self.complete()

    @property
    def token_count(self) -> TokenCount:
        """P tokens for a picture and one for each of its boxes."""
        tokens = self.visual_encoder.spec.tokens
        for part in (self.fuse_module, self.projector):
            tokens = part.out_tokens(tokens) if hasattr(part, "out_tokens") else tokens
        return TokenCount(per_canvas=tokens, per_box=0 if self.bbox_projector is None else 1)

    def look(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Looked:
        """See :meth:`System.look`."""
        is_high_read = self.fuse_module is not None or self.bbox_projector is not None
        seen = run_encoders(self, (LOW, HIGH) if is_high_read else (LOW,), canvas)
        if self.bbox_projector is None:
            return Looked(seen)
        return Looked(seen, self.bbox_projector.pool(seen[HIGH], boxes, canvas.shape[-1]))

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """See :meth:`System.connect`."""
        dtype = self.connector.dtype
        low = looked.seen[LOW].tokens
        assert low is not None
        tokens = low.to(dtype)  # (N, P, C)
        self.observe("low", tokens)
        if self.fuse_module is not None:
            high = Seen(maps=[item.to(dtype) for item in self._read_maps(looked.seen[HIGH])])
            tokens = self.fuse_module(tokens, high)
            self.monitor |= getattr(self.fuse_module, "monitor", {}) if self.training else {}
        visual = list(self.projector(tokens))  # (P', D) each
        if self.bbox_projector is None:
            return [[Segment("visual", item)] for item in visual]
        pooled = self.bbox_projector.project(looked.pooled)  # (sum n_i, D)
        self.observe("box", pooled)
        objects = list(pooled.split(list(counts)))
        if self.merger is not None:
            visual, objects = self.merger(visual, objects)
        return [[Segment("visual", v), Segment("object", o)] for v, o in zip(visual, objects, strict=True)]

    def blank_looked(self) -> Looked:
        """See :meth:`System.blank_looked`."""
        nothing, low = self.connector.new_zeros, self.visual_encoder.spec
        seen = {LOW: Seen(nothing(1, low.tokens, low.channels))}
        if self.visual_encoder_aux is not None:
            high = self.visual_encoder_aux.spec
            sides = [high.image_size // stride for stride in high.stage_strides]
            stages = list(zip(high.stage_channels, sides, strict=True))
            read = stages if getattr(self.fuse_module, "reads", "last") == "all" else stages[-1:]
            seen[HIGH] = Seen(maps=[nothing(1, channels, side, side) for channels, side in read])
        return Looked(seen, None if self.bbox_projector is None else nothing(1, self.bbox_projector.in_channels))

    def _read_maps(self, high: Seen) -> Sequence[Tensor]:
        """The maps that the fusion reads; others are not converted."""
        return high.maps if self.fuse_module.reads == "all" else high.maps[-1:]

    @staticmethod
    def _check(
        low: Any,
        high: Any,
        fusion: Any,
        fusion_sizes: dict[str, Any],
        boxes: Any,
        box_sizes: dict[str, Any],
        merger: Any,
    ) -> None:
        problems = check_part("merger", merger, Merger, {})
        if merger is not None and boxes is None:
            problems.append("merger reads the tokens of boxes, but box_projector is None; give one or leave it out")
        readers = {"fusion": (fusion, Fusion, fusion_sizes), "box_projector": (boxes, ObjectReader, box_sizes)}
        for name, (part, kind, sizes) in readers.items():
            problems += check_part(name, part, kind, sizes if high is not None else {})
        there = [name for name, (part, _, _) in readers.items() if part is not None]
        if high is None and there:
            problems.append(
                f"high_res_encoder is None, but {' and '.join(there)} would read it; give one or leave these out"
            )
        if low.tokens == 0:
            problems.append(f"low_res_encoder is {low.type}, which gives no tokens; use one such as CLIPEncoder")
        if high is not None and not high.stage_channels:
            problems.append(f"high_res_encoder is {high.type}, which gives no maps; use one such as TimmEncoder")
        if high is not None and low.image_size > high.image_size:
            problems.append(
                f"the low-resolution view ({low.image_size} px) is larger than the canvas ({high.image_size} px)"
            )
        if issubclass(kind_of(fusion), Fusion) and low.tokens and high is not None and high.stage_strides:
            problems += kind_of(fusion).conflicts(low, high, fusion if isinstance(fusion, dict) else vars(fusion))
        raise_together(problems)
