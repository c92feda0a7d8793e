"""Compares the tensors of a checkpoint, key by key, with those that it must have."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mg_llava.models.weights.stored import TensorMap

Shape = tuple[int, ...]


@dataclass
class KeyReport:
    """The parts of a checkpoint, and its keys that do not fit."""

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
    def missing_parts(self) -> list[str]:
        """Parts of which nothing is there."""
        return sorted({key.split(".", 1)[0] for key in self.missing} - self.parts.keys())

    @property
    def problems(self) -> list[str]:
        """One sentence for each kind of misfit; empty when the checkpoint is complete."""
        found, absent = [], self.missing_parts
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

    @property
    def misfits(self) -> list[str]:
        """The problems, unknown keys among them: for weights that must be exactly a model's."""
        return self.problems or [f"{len(self.unknown)} keys are unknown: {_some(self.unknown)}"] * bool(self.unknown)

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
    """Names and shapes that a checkpoint must have.

    Args:
        shapes: Of its tensors.
        source: Where they come from, for messages.
        optional: Names that may be absent, such as further names of tied weights.
        open_parts: Parts that must be there, of which no more is known.
    """

    shapes: Mapping[str, Shape]
    source: str = "in the model"
    optional: Collection[str] = ()
    open_parts: Collection[str] = ()


def check_keys(
    tensors: TensorMap, expected: Expected, unknown: Collection[str] = (), ignored: Collection[str] = ()
) -> KeyReport:
    """Compare a checkpoint with what it must have.

    Args:
        tensors: Under the model's names.
        expected: What must be there.
        unknown: Keys that were left out, for the report.
        ignored: Keys that are known to be of no use, for the report.
    """
    report = KeyReport(parts=summarize(tensors), unknown=list(unknown), ignored=list(ignored))
    absent = [f"{part}.*" for part in expected.open_parts if part not in report.parts]
    report.missing = [key for key in expected.shapes if key not in tensors and key not in expected.optional] + absent
    for key, tensor in tensors.items():
        shape = expected.shapes.get(key)
        if shape is not None and tensor.shape != shape:
            report.misshapen.append(f"{key} {tensor.shape} here, {shape} {expected.source}")
        elif shape is None and key not in expected.optional and key.split(".", 1)[0] not in expected.open_parts:
            report.unknown.append(key)
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
