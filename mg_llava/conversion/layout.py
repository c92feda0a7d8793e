"""The reference's layout: which keys a checkpoint must have, of which shapes, and a report of what one has."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mg_llava.models.weights.parts import PARTS
from mg_llava.models.weights.stored import TensorMap

Shape = tuple[int, ...]
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


@dataclass
class KeyReport:
    """What a checkpoint has, and what is wrong with it."""

    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tensors, parameters, bytes and dtypes by part."""
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    """Keys with both shapes."""
    unknown: list[str] = field(default_factory=list)
    """Keys that no part has; they are left out."""
    ignored: list[str] = field(default_factory=list)
    """Keys that are known to be of no use."""

    @property
    def problems(self) -> list[str]:
        """One sentence for each kind of misfit; empty when the checkpoint is complete."""
        found = []
        absent = sorted({key.split(".", 1)[0] for key in self.missing} - self.parts.keys())
        if absent:
            found.append(f"the whole part {', '.join(absent)} is absent (it has: {', '.join(self.parts) or 'none'})")
        keys = [key for key in self.missing if key.split(".", 1)[0] not in absent]
        if keys:
            found.append(f"{len(keys)} keys are missing: {_some(keys)}")
        if self.misshapen:
            found.append(f"{len(self.misshapen)} shapes do not fit: {_some(self.misshapen)}")
        if found and self.unknown:
            found.append(f"keys that no part knows: {_some(self.unknown)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        lists = {name: getattr(self, name) for name in ("missing", "misshapen", "unknown", "ignored")}
        return {"parts": self.parts, **lists, "problems": self.problems}

    def __str__(self) -> str:
        lines = [
            f"{part}: {has['tensors']} tensors, {has['parameters']:,} parameters, {has['bytes'] / 1e6:,.1f} MB, "
            + ", ".join(has["dtypes"])
            for part, has in self.parts.items()
        ]
        for name in ("missing", "misshapen", "unknown", "ignored"):
            keys = getattr(self, name)
            if keys:
                lines.append(f"{len(keys)} {name}: {_some(keys)}")
        return "\n".join(lines)


def _some(keys: Collection[str]) -> str:
    shown = list(keys)[:4]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")


@dataclass(frozen=True)
class Expected:
    """Which parts a checkpoint must have.

    Args:
        parts: Parts that must be there.
        plain: Parts that are not the reference's own kind and are only looked at for being there.
        depths: Linear layers of each projector.
        llm: Names and shapes of the LLM's parameters without ``llm.``, where its configuration is known.
        tied: Further names of tied weights with the names in ``llm``; they may be absent.
        sizes: Sizes that are known from elsewhere, by their names in the table of shapes.
    """

    parts: frozenset[str] = frozenset(PARTS) - {"llm"}
    plain: frozenset[str] = frozenset()
    depths: Mapping[str, int] = field(default_factory=lambda: {"projector": 2, "bbox_projector": 2})
    llm: Mapping[str, Shape] | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def check_layout(
    tensors: TensorMap, expected: Expected, unknown: Collection[str] = (), ignored: Collection[str] = ()
) -> KeyReport:
    """Compare a checkpoint with the reference's layout.

    Sizes that only a config could tell are found by majority: a shape that contradicts the others is reported.

    Args:
        tensors: Under the reference's names.
        expected: What must be there; an LLM that is there must be complete in any case.
        unknown: Keys that were left out, for the report.
        ignored: Keys that are known to be of no use, for the report.
    """
    report = KeyReport(parts=summarize(tensors), unknown=list(unknown), ignored=list(ignored))
    wanted = _wanted_shapes(tensors, expected)
    report.missing = [key for key in wanted if key not in tensors]
    sizes = _vote(tensors, wanted) | dict(expected.sizes)
    for key, symbols in wanted.items():
        if key in tensors:
            shape = tuple(symbol if isinstance(symbol, int) else _size(symbol, sizes) for symbol in symbols)
            if tensors[key].shape != shape:
                report.misshapen.append(f"{key} {tensors[key].shape} here, {shape} after the others")
    for part in sorted(expected.parts & expected.plain):
        if part not in report.parts:
            report.missing.append(f"{part}.*")
    known = {key.split(".", 1)[0] for key in wanted} - {"llm"}
    if any(key.startswith("llm.") for key in tensors) or "llm" in expected.parts:
        _check_llm(tensors, expected, sizes.get("width"), report)
    report.unknown += [
        key
        for key in tensors
        if key not in wanted and (part := key.split(".", 1)[0]) in known and part not in expected.plain
    ]
    return report


def summarize(tensors: TensorMap) -> dict[str, dict[str, Any]]:
    """Tensors, parameters, bytes and dtypes by part; tied weights count once."""
    parts: dict[str, dict[str, Any]] = {}
    dtypes: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        part = key.split(".", 1)[0]
        entry = parts.setdefault(part, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        dtypes.setdefault(part, Counter())[str(tensor.dtype).removeprefix("torch.")] += 1
        if id(tensor) not in seen:
            seen.add(id(tensor))
            entry["parameters"] += tensor.numel
            entry["bytes"] += tensor.nbytes
    return {part: {**entry, "dtypes": dict(dtypes[part])} for part, entry in sorted(parts.items())}


def _wanted_shapes(tensors: TensorMap, expected: Expected) -> dict[str, tuple[Symbol, ...]]:
    wanted: dict[str, tuple[Symbol, ...]] = {}
    parts = (expected.parts | {key.split(".", 1)[0] for key in tensors}) - expected.plain
    for name, (weight, bias) in _PAIRS.items():
        if name.split(".", 1)[0] in parts:
            wanted |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for part in sorted(parts & {"projector", "bbox_projector"}):
        for index in range(1, expected.depths.get(part, 2)):
            name = f"{part}.model.{2 * index}"
            wanted |= {f"{name}.weight": ("width", "width"), f"{name}.bias": ("width",)}
    if "fuse_module" in parts and "projector.model.0.weight" in wanted:
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


def _check_llm(tensors: TensorMap, expected: Expected, width: int | None, report: KeyReport) -> None:
    llm = {key.removeprefix("llm."): tensor.shape for key, tensor in tensors.items() if key.startswith("llm.")}
    if not llm:
        report.missing.append("llm.*")
        return
    shapes = expected.llm if expected.llm is not None else _infer_llm(llm, width)
    report.missing += [f"llm.{key}" for key in shapes if key not in llm]
    report.misshapen += [
        f"llm.{key} {llm[key]} here, {shape} expected"
        for key, shape in shapes.items()
        if key in llm and llm[key] != shape
    ]
    if expected.llm is not None:
        report.unknown += [f"llm.{key}" for key in llm if key not in shapes and key not in expected.tied]


def _infer_llm(llm: Mapping[str, Shape], width: int | None) -> dict[str, Shape]:
    """What an LLM must have after its own layers: each has what the others have, in the same shapes."""
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
