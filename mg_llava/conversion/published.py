"""Shapes of a checkpoint that comes without a config, such as the published ones: found by majority among its keys."""

import re
from collections import Counter
from collections.abc import Mapping

from mg_llava.conversion.report import Shape
from mg_llava.models.weights.stored import TensorMap

Symbol = int | str

_PAIRS: dict[str, tuple[tuple[Symbol, ...], tuple[Symbol, ...]]] = {
    "fuse_module.slow_conv": (("high", "high", 1, 1), ("high",)),
    "fuse_module.slow_proj": (("low", "high", 1, 1), ("low",)),
    "fuse_module.fast_conv": (("low", 1, 7, 7), ("low",)),
    "fuse_module.fast_proj": (("low", "low", 1, 1), ("low",)),
    "fuse_module.gate.0": (("gate", "twice low"), ("gate",)),
    "fuse_module.gate.2": ((1, "gate"), (1,)),
    "projector.model.0": (("width", "visual"), ("width",)),
    "bbox_projector.model.0": (("width", "stages"), ("width",)),
}
"""Shapes of weight and bias; what has the same name must have the same size."""

_ENDS: dict[str, tuple[Symbol, ...]] = {
    "llm.model.embed_tokens.weight": ("vocabulary", "width"),
    "llm.model.norm.weight": ("width",),
    "llm.lm_head.weight": ("vocabulary", "width"),
}
"""The LLM's tensors outside its layers, in the Llama family's names."""

_LAYER = re.compile(r"\.(\d+)\.")

DEPTHS = {"fuse_module": 0, "projector": 2, "bbox_projector": 2}
"""The published connectors, with the linear layers of each projector."""


def vote_shapes(tensors: TensorMap, depths: Mapping[str, int] | None = None) -> dict[str, Shape]:
    """Shapes that the published kinds of connectors have after the other keys of a checkpoint.

    Args:
        tensors: Under the model's names.
        depths: The connectors, with the linear layers of each projector; by default the published ones and those that
            are there.
    """
    found = {key.split(".", 1)[0] for key in tensors} & DEPTHS.keys()
    wanted = _wanted(DEPTHS if depths is None else {**{part: DEPTHS[part] for part in found}, **depths})
    sizes = _vote(tensors, wanted)
    return {
        key: tuple(symbol if isinstance(symbol, int) else _size(symbol, sizes) for symbol in symbols)
        for key, symbols in wanted.items()
    }


def vote_llm(tensors: TensorMap, width: int | None) -> dict[str, Shape]:
    """Shapes of an LLM, without ``llm.``, after its own layers: each has what the others have, in the same shapes."""
    return _infer_llm(
        {key.removeprefix("llm."): t.shape for key, t in tensors.items() if key.startswith("llm.")}, width
    )


def _wanted(depths: Mapping[str, int]) -> dict[str, tuple[Symbol, ...]]:
    wanted: dict[str, tuple[Symbol, ...]] = {}
    for name, (weight, bias) in _PAIRS.items():
        if name.split(".", 1)[0] in depths:
            wanted |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for part, depth in depths.items():
        for index in range(1, depth):
            name = f"{part}.model.{2 * index}"
            wanted |= {f"{name}.weight": ("width", "width"), f"{name}.bias": ("width",)}
    if "fuse_module" in depths and "projector.model.0.weight" in wanted:
        wanted["projector.model.0.weight"] = ("width", "low")
    return wanted


def _vote(tensors: TensorMap, wanted: Mapping[str, tuple[Symbol, ...]]) -> dict[str, int]:
    votes: dict[str, Counter[int]] = {}
    for key, symbols in {**wanted, **_ENDS}.items():
        if key in tensors and len(tensors[key].shape) == len(symbols):
            for symbol, size in zip(symbols, tensors[key].shape, strict=True):
                if isinstance(symbol, str):
                    votes.setdefault(symbol, Counter())[size] += 1
    return {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    return 2 * sizes.get("low", 0) if symbol == "twice low" else sizes.get(symbol, 0)


def _infer_llm(llm: Mapping[str, Shape], width: int | None) -> dict[str, Shape]:
    groups: dict[str, Counter[Shape]] = {}
    layers: Counter[int] = Counter()
    for key, shape in llm.items():
        match = _LAYER.search(key)
        if match:
            groups.setdefault(_LAYER.sub(".{}.", key, count=1), Counter())[shape] += 1
            layers[int(match[1])] += 1
    shapes: dict[str, Shape] = {}
    for name, counter in groups.items():
        if counter.total() * 2 >= len(layers):  # a key of one layer alone is the odd one, not missing in the others
            for layer in range(max(layers) + 1):
                shapes[name.format(layer)] = counter.most_common(1)[0][0]
    if any(key.startswith("model.layers.0.self_attn.") for key in llm):  # the Llama family's names
        vocabulary = next((llm[name][0] for name in ("model.embed_tokens.weight", "lm_head.weight") if name in llm), 0)
        width = width or next((llm[name][-1] for name in ("model.norm.weight",) if name in llm), 0)
        shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (vocabulary, width)
        shapes["model.norm.weight"] = (width,)
    return shapes
