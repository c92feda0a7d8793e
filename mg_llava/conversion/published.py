"""Shapes of a checkpoint that comes without a config, such as the published ones: found by majority among its keys."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from mg_llava.models.parts import kind_of, taken, try_part
from mg_llava.models.weights.report import Shape
from mg_llava.models.weights.stored import TensorMap

Symbol = int | str

_WEIGHTS: dict[str, tuple[Symbol, ...]] = {
    "fuse_module.slow_conv": ("high", "high", 1, 1),
    "fuse_module.slow_proj": ("low", "high", 1, 1),
    "fuse_module.fast_conv": ("low", 1, 7, 7),
    "fuse_module.fast_proj": ("low", "low", 1, 1),
    "fuse_module.gate.0": ("gate", "twice low"),
    "fuse_module.gate.2": (1, "gate"),
    "projector.model.0": ("width", "visual"),
    "bbox_projector.model.0": ("width", "stages"),
}
"""Shapes of weights; what has the same name must have the same size. A bias is as long as its weight."""

_ENDS: dict[str, tuple[Symbol, ...]] = {
    "llm.model.embed_tokens.weight": ("vocabulary", "width"),
    "llm.model.norm.weight": ("width",),
    "llm.lm_head.weight": ("vocabulary", "width"),
}
"""The LLM's tensors outside its layers, in the Llama family's names."""

_DEPTHS = {"fuse_module": 0, "projector": 2, "bbox_projector": 2}
"""The published connectors, with the linear layers of each projector."""

_KINDS = {"fuse_module": "ConvGateFusion", "projector": "MLPProjector", "bbox_projector": "RoIAlignBoxProjector"}

_ANY_SIZE = dict.fromkeys(
    ("low_channels", "high_channels", "visual_channels", "object_channels", "in_channels", "out_channels"), 1
)
"""Sizes with which a part has weights, if it has any."""

_LAYER = re.compile(r"\.(\d+)\.")


def published_depths(connectors: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Connectors, by their keys, that are of the published kinds, with their depths; and the keys of the others.

    Those that have no weights are in neither, as they are in no checkpoint.
    """
    depths, others = {}, []
    given = {key: config for key, config in connectors.items() if config is not None}
    if not all(getattr(kind_of(config), "keeps_objects", True) for config in given.values()):
        given.pop("bbox_projector", None)  # boxes are pooled for a merger, and not projected
    for key, config in given.items():
        if kind_of(config).__name__ == _KINDS.get(key) and config.get("gate_per", "picture") != "channel":
            depths[key] = config.get("depth", _DEPTHS[key])
        elif _has_weights(config):
            others.append(key)
    return depths, others


def _has_weights(config: Mapping[str, Any]) -> bool:
    """False for a part that is known to have none."""
    made, _ = try_part("it", config, **taken(config, **_ANY_SIZE))
    return made is None or bool(made.state_dict())


def vote_shapes(
    tensors: TensorMap, depths: Mapping[str, int] | None = None, others: Collection[str] = ()
) -> dict[str, Shape]:
    """Shapes that the published kinds of connectors have after the other keys of a checkpoint.

    Args:
        tensors: Under the model's names.
        depths: The connectors, with the linear layers of each projector; by default the published ones and those that
            are there.
        others: Connectors of other kinds, of which nothing is known.
    """
    there = {key.split(".", 1)[0] for key in tensors} & (_DEPTHS.keys() - set(others))
    depths = _DEPTHS if depths is None else {**{part: _DEPTHS[part] for part in there}, **depths}
    weights = {name: symbols for name, symbols in _WEIGHTS.items() if name.split(".", 1)[0] in depths}
    for part, depth in depths.items():
        weights |= {f"{part}.model.{2 * index}": ("width", "width") for index in range(1, depth)}
    if "fuse_module" in depths and "projector" in depths:
        weights["projector.model.0"] = ("width", "low")
    leaves = (("weight", None), ("bias", 1))
    wanted = {f"{name}.{leaf}": symbols[:end] for name, symbols in weights.items() for leaf, end in leaves}
    votes: defaultdict[Symbol, Counter[int]] = defaultdict(Counter)
    for key, symbols in {**wanted, **_ENDS}.items():
        if key in tensors and len(tensors[key].shape) == len(symbols):
            for symbol, size in zip(symbols, tensors[key].shape, strict=True):
                votes[symbol][size] += 1
    sizes = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    sizes["twice low"] = 2 * sizes.get("low", 0)
    return {
        key: tuple(s if isinstance(s, int) else sizes.get(s, 0) for s in symbols) for key, symbols in wanted.items()
    }


def vote_llm(tensors: TensorMap, width: int | None) -> dict[str, Shape]:
    """Shapes of an LLM after its own layers: each has what the others have, in the same shapes."""
    llm = {key: tensor.shape for key, tensor in tensors.items() if key.startswith("llm.")}
    groups: defaultdict[str, Counter[Shape]] = defaultdict(Counter)
    layers: Counter[int] = Counter()
    for key, shape in llm.items():
        if match := _LAYER.search(key):
            groups[_LAYER.sub(".{}.", key, count=1)][shape] += 1
            layers[int(match[1])] += 1
    shapes: dict[str, Shape] = {}
    for name, counter in groups.items():
        if counter.total() * 2 >= len(layers):  # a key of one layer alone is the odd one, not missing in the others
            for layer in range(max(layers) + 1):
                shapes[name.format(layer)] = counter.most_common(1)[0][0]
    if any(key.startswith("llm.model.layers.0.self_attn.") for key in llm):  # the Llama family's names
        embeddings, norm, head = _ENDS
        vocabulary = next((llm[name][0] for name in (embeddings, head) if name in llm), 0)
        width = width or next((llm[name][-1] for name in (norm,) if name in llm), 0)
        shapes[embeddings] = shapes[head] = (vocabulary, width)
        shapes[norm] = (width,)
    return shapes
