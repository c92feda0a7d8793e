"""Models of real sizes with random weights, by name, and batches of random samples for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mg_llava.compat import dtype_name
from mg_llava.data.collate import collate
from mg_llava.models.adapters.lora import add_lora
from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.fusion.conv_gate import ConvGateFusion
from mg_llava.models.llm import attention_candidates
from mg_llava.models.losses.language import LanguageLoss
from mg_llava.models.objects.roi_align import RoIAlignBoxProjector
from mg_llava.models.packing import plan_rows
from mg_llava.models.projectors import MLPProjector
from mg_llava.models.recompute import Checkpointing, enable_checkpointing
from mg_llava.models.system import System
from mg_llava.models.systems.mg_llava import MGLLaVA
from mg_llava.planning.flops import TEXT_TOKENS, Sample, count_flops
from mg_llava.planning.skeleton import Skeleton
from mg_llava.profiling._measure import ROOT
from mg_llava.profiling._reference import ChannelsFirstConvNeXt, CheckpointedCLIP, DenseBoxProjector
from mg_llava.profiling._stock import build_stock
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

LLMS = {
    "nano": str(ROOT / "data" / "nano" / "llm"),
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "phi3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "vicuna7b": "lmsys/vicuna-7b-v1.5",
    "vicuna13b": "lmsys/vicuna-13b-v1.5",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "yi34b": "01-ai/Yi-1.5-34B-Chat",
}
VISION: dict[str, tuple[str, str, int]] = {
    "paper": ("openai/clip-vit-large-patch14-336", "CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", 768),
    "nano": (str(ROOT / "data" / "nano" / "clip"), str(ROOT / "data" / "nano" / "convnext"), 256),
}
"""Low- and high-resolution encoder, and the side of the canvas in pixels."""

Lever = Literal["no_grad", "channels_last", "separable", "uint8", "fused_optimizer"]
Trained = Literal["nothing", "adapters", "all"]
LEVERS: tuple[Lever, ...] = ("no_grad", "channels_last", "separable", "uint8", "fused_optimizer")
"""Levers that can be switched off one by one, besides arguments of the model."""


@dataclass
class Case:
    """A training step to measure; all values are plain.

    Attributes:
        llm: A name of ``LLMS``, or path or hub name of another causal LM.
        vision: A name of ``VISION``.
        llm_trains: What trains besides fusion and projectors: nothing of the LLM, adapters of it, or all of it.
        way: Ours, the published one, which has every lever off, or XTuner's own LLaVA, which sees the low-resolution
            view alone, and no boxes.
        off: Levers that are off.
        model: More arguments of the model.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Samples in a step.
        boxes: Boxes of a picture.
        text: Mean number of text tokens of a sample; lengths spread around it.
        pictures: Pictures of a sample.
        threads: Of torch, on a CPU.
        checkpointing: What activations of the LLM the backward pass computes again: False, True or ``"selective"``.
        autocast: Compute in bfloat16 where autocast allows it, on a CPU too.
        seed: Seed of weights and batches.
    """

    llm: str = "nano"
    vision: str = "paper"
    llm_trains: Trained = "nothing"
    way: Literal["ours", "reference", "stock"] = "ours"
    off: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    batch_size: int = 2
    boxes: int = 100
    text: int = TEXT_TOKENS
    pictures: int = 1
    threads: int = 2
    checkpointing: Checkpointing = False
    autocast: bool = False
    seed: int = 0

    def is_on(self, lever: Lever) -> bool:
        """Whether a lever is on."""
        return self.way == "ours" and lever not in self.off

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the LLM and the encoders, as the recipe has it."""
        return torch.bfloat16 if torch.device(self.device).type == "cuda" else torch.float32


def build_model(case: Case, device: str | None = None) -> Any:
    """The model of a case on its device, with random weights that depend on the seed alone.

    Raises:
        ArchitectureError: Nothing says how large the LLM is.
    """
    low_name, high_name, canvas = VISION[case.vision]
    target = torch.device(device or case.device)
    model = dict(case.model)
    loss = {name: model.pop(f"loss_{name}") for name in ("chunk", "kernel") if f"loss_{name}" in model}
    with target:
        torch.manual_seed(case.seed)
        attention = "sdpa" if target.type == "meta" else attention_candidates()[0]
        if case.way == "stock":
            llm = _language_model(case, attention)
            return build_stock(llm, low_name, canvas, case.dtype, case.checkpointing, case.llm_trains).train()
        low = _low_encoder(case, low_name)
        high = _high_encoder(case, high_name, canvas)
        llm = _language_model(case, attention)
        llm = add_lora(llm, {}) if case.llm_trains == "adapters" else llm.requires_grad_(case.llm_trains == "all")
        boxes = RoIAlignBoxProjector if case.is_on("separable") else DenseBoxProjector
        built = MGLLaVA(
            llm=llm,
            low_res_encoder=low,
            high_res_encoder=high,
            projector=dict(type=MLPProjector),
            fusion=dict(type=ConvGateFusion),
            box_projector=dict(type=boxes),
            losses=[dict(type=LanguageLoss, **loss)],
            **model,
        )
        for projection in (built.fuse_module.slow_proj, built.fuse_module.fast_proj):
            nn.init.normal_(projection.weight, std=0.02)  # not zero, so that every branch counts
    return built.train()


def make_batches(case: Case, model: Any, count: int) -> list[dict[str, Any]]:
    """Batches of random samples, as ``collate`` makes them, on the CPU."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    canvas = model.canvas_size
    vocabulary = model.llm.get_input_embeddings().num_embeddings
    return [
        collate([_counted(_sample(case, generator, vocabulary, canvas), model) for _ in range(case.batch_size)])[
            "data"
        ]
        for _ in range(count)
    ]


def count_works(cases: list[dict[str, Any]], warmup: int, steps: int) -> list[dict[str, float]]:
    """What :func:`count_work` says of each case; for ``run_child``."""
    return [count_work(settings, warmup, steps) for settings in cases]


def count_work(settings: dict[str, Any], warmup: int, steps: int) -> dict[str, float]:
    """Count the work of a mean step of a case, of so many after some; for ``run_child``.

    Returns:
        ``flops``, forward and backward pass without what is computed again or for padding, ``recomputed``, what
        checkpointing of the LLM computes again, ``tokens``, positions of the LLM that are no padding, and ``waste``
        and ``waste_packed``, shares of all positions that padding takes in rows as they are, and packed.
    """
    capacity = settings.get("model", {}).get("packing") or 4096
    case = Case(**settings | {"way": "ours", "off": [], "model": {}, "checkpointing": False})
    model = build_model(case, "meta")
    skeleton = Skeleton(model, quantized=False, checkpointing=settings.get("checkpointing", False))
    batches = make_batches(case, model, warmup + steps)[warmup:]
    lengths = [length for batch in batches for length in _text_lengths(batch)]
    # counting a length takes seconds, and goes nearly evenly with it: two are counted
    ends = sorted({min(lengths), max(lengths)})
    found = [count_flops(skeleton, Sample(length, case.boxes)) for length in ends]
    flops = np.interp(lengths, ends, [sum(item.training.values()) for item in found]).sum()
    recomputed = np.interp(lengths, ends, [item.recomputed for item in found]).sum()
    tokens = sum(length + found[0].length - ends[0] for length in lengths)
    numbers = {"flops": float(flops), "recomputed": float(recomputed), "tokens": float(tokens)}
    rows = [batch["layout"].lengths for batch in batches]
    places = {
        "waste": sum(len(own) * max(own) for own in rows),
        "waste_packed": sum(_packed(own, capacity) for own in rows),
    }
    wastes = {name: 1 - sum(map(sum, rows)) / count for name, count in places.items()}
    return {name: number / steps for name, number in numbers.items()} | wastes


def _packed(lengths: Sequence[int], capacity: int) -> int:
    """Positions of packed rows, where attention needs no mask."""
    plan = plan_rows(lengths, capacity)
    return len(plan) * max(sum(lengths[number] for number in row) for row in plan)


def _text_lengths(batch: dict[str, Any]) -> list[int]:
    """Text tokens of the samples of a batch, placeholders not counted."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return ((ids != IMAGE_TOKEN_INDEX) & mask).sum(dim=1).tolist()


def _low_encoder(case: Case, name: str) -> VisionEncoder:
    is_plain = case.is_on("no_grad")
    kind, layer = (CLIPEncoder, -2) if is_plain else (CheckpointedCLIP, -1)
    return kind.from_spec(kind.describe({"path": name, "layer": layer}), case.dtype)


def _high_encoder(case: Case, name: str, canvas: int) -> VisionEncoder:
    kind = OpenCLIPConvNeXtEncoder if case.is_on("channels_last") else ChannelsFirstConvNeXt
    return kind.from_spec(kind.describe({"path": name, "image_size": canvas}), case.dtype)


def _language_model(case: Case, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    found = dict(find_architecture(LLMS.get(case.llm, case.llm), "transformers").config)
    for key in ("architectures", "torch_dtype", "transformers_version"):
        found.pop(key, None)
    config = AutoConfig.for_model(**found)
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention, **{dtype_name(): case.dtype})
    llm.config.use_cache = False
    if case.way != "stock":  # which switches its own on
        enable_checkpointing(llm, case.checkpointing)
    return llm


def _sample(case: Case, generator: torch.Generator, vocabulary: int, canvas: int) -> dict[str, Any]:
    """A question about pictures and an answer of about the same length; lengths are spread as in real mixtures."""
    spread = torch.randn((), generator=generator).mul(0.5).sub(0.125).exp()  # log-normal of mean 1
    length = max(8, int(case.text * spread)) + case.pictures
    ids = torch.randint(4, vocabulary, (length,), generator=generator)
    ids[1 : 1 + case.pictures] = IMAGE_TOKEN_INDEX
    labels = ids.clone()
    labels[: max(length // 2, 1 + case.pictures)] = IGNORE_INDEX
    return {
        "input_ids": ids,
        "labels": labels,
        "images": [_image(canvas, generator) for _ in range(case.pictures)],
        "boxes": [_boxes(case.boxes, canvas, generator) for _ in range(case.pictures)],
    }


def _counted(sample: dict[str, Any], model: Any) -> dict[str, Any]:
    """A sample with the tokens of its placeholders, as the data set counts them for a system."""
    if not isinstance(model, System):
        return sample
    return sample | {"tokens": [model.token_count(1, len(own)) for own in sample["boxes"]]}


def _image(canvas: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, canvas, canvas), generator=generator, dtype=torch.uint8)


def _boxes(count: int, canvas: int, generator: torch.Generator) -> Tensor:
    """(n, 4) with corners anywhere on the canvas."""
    return (torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * canvas).flatten(1)
