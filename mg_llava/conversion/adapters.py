"""LoRA adapters: finding them in a checkpoint under any of their names, and merging them into an LLM's weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from mg_llava.conversion.files import ConversionError
from mg_llava.models.adapters.lora import LORA_DEFAULTS, WRAPPED
from mg_llava.models.weights.stored import StoredTensor, TensorMap

_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.(?P<name>[^.]+))?\.(?P<leaf>weight|bias)")
_FOUR_BIT = re.compile(r".+\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)")


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices by the module of the LLM that they belong to."""

    pairs: dict[str, tuple[StoredTensor, StoredTensor]]
    """``A`` (r, in) and ``B`` (out, r) of each module, named without ``llm.``."""
    embeddings: frozenset[str]
    """Modules that are embeddings, whose ``B @ A`` is transposed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``peft.LoraConfig``, as far as they are known."""
    saved: frozenset[str] = frozenset()
    """Weights that were trained whole beside them, under the LLM's own names."""

    @property
    def chosen_layers(self) -> bool:
        """True where some layers may have adapters that others lack."""
        return any(self.settings.get(name) for name in ("layers_to_transform", "rank_pattern", "exclude_modules"))

    def named(self) -> TensorMap:
        """The matrices under the names they have in a checkpoint of this project."""
        tensors: TensorMap = {}
        for module, pair in self.pairs.items():
            for letter, tensor in zip("AB", pair, strict=True):
                is_embedding = module in self.embeddings
                leaf = f"lora_embedding_{letter}.default" if is_embedding else f"lora_{letter}.default.weight"
                tensors[f"llm.{WRAPPED}{module}.{leaf}"] = tensor
        return tensors

    def name_saved(self, tensors: TensorMap) -> TensorMap:
        """Give weights that were trained whole the names that a model with adapters has for them."""
        names = {}
        for name in self.saved:
            module, leaf = name.rsplit(".", 1)
            names[f"llm.{name}"] = f"llm.{WRAPPED}{module}.modules_to_save.default.{leaf}"
        return {names.get(key, key): tensor for key, tensor in tensors.items()}

    def scaling(self, module: str) -> float:
        """Factor of ``B @ A``.

        Raises:
            ConversionError: the settings are for another rank, or for a kind of adapter that cannot be merged here.
        """
        settings = LORA_DEFAULTS | dict(self.settings)
        if settings.get("use_dora"):
            raise ConversionError("the adapters are DoRA, which is not a plain sum; merge them with PEFT")
        rank = self.pairs[module][0].shape[0]
        wanted = _of_module(settings.get("rank_pattern"), module, settings["r"])
        if rank != wanted:
            raise ConversionError(
                f"the adapter of {module} has rank {rank}, but the settings say r={wanted}; give the config of its "
                "training, so that lora_alpha is right as well"
            )
        alpha = _of_module(settings.get("alpha_pattern"), module, settings["lora_alpha"])
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Setting of the first pattern that a module's name ends with, as PEFT reads them."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def split_adapters(tensors: TensorMap, settings: Mapping[str, Any], source: str) -> tuple[TensorMap, Adapter | None]:
    """Take the adapters out of a checkpoint.

    Args:
        tensors: Under the reference's names; those of the LLM may be wrapped by PEFT, with the adapter's name
            (``lora_A.default.weight``) or without it.
        settings: Arguments of ``peft.LoraConfig``.
        source: Path, for messages.

    Returns:
        All other tensors, those of the LLM under its own names; and the adapters, if there are any.

    Raises:
        ConversionError: one matrix of a pair is absent, there are several adapters, or the base is in 4 bits.
    """
    rest: TensorMap = {}
    found: dict[str, dict[str, StoredTensor]] = {}
    embeddings: set[str] = set()
    names: set[str] = set()
    saved: set[str] = set()
    for key, tensor in tensors.items():
        if not key.startswith("llm."):
            rest[key] = tensor
            continue
        name = key.removeprefix("llm.").removeprefix(WRAPPED)
        if _FOUR_BIT.fullmatch(name) or "lora_magnitude_vector" in name:
            kind = "DoRA adapters" if "magnitude" in name else "an LLM in 4 bits"
            raise ConversionError(
                f"{source} holds {kind} ({key}), which cannot be merged; save the LoRA adapters alone"
            )
        if match := _LORA.fullmatch(name):
            found.setdefault(match["module"], {})[match["which"]] = tensor
            names.add(match["name"] or "default")
            if match["embedding"]:
                embeddings.add(match["module"])
        elif match := _SAVED.fullmatch(name):
            saved.add(f"{match['module']}.{match['leaf']}")
            rest[f"llm.{match['module']}.{match['leaf']}"] = tensor
            names.add(match["name"] or "default")
        elif ".original_module." not in name:
            rest.setdefault(f"llm.{name.replace('.base_layer.', '.')}", tensor)
    if not found:
        return rest, None
    half = sorted(module for module, pair in found.items() if len(pair) < 2)
    if half:
        raise ConversionError(
            f"{source}: {len(half)} adapters lack one of their two matrices, e.g. {half[0]} has "
            f"lora_{next(iter(found[half[0]]))} alone"
        )
    if len(names) > 1:
        raise ConversionError(f"{source} has several adapters ({', '.join(sorted(names))}); save one of them alone")
    pairs = {module: (pair["A"], pair["B"]) for module, pair in found.items()}
    return rest, Adapter(pairs, frozenset(embeddings), settings, frozenset(saved))


def merge_adapter(llm: TensorMap, adapter: Adapter) -> TensorMap:
    """Add the adapters to the weights of an LLM; each sum is made, in float32, when it is read.

    Args:
        llm: Weights under ``llm.``, in full precision.
        adapter: The adapters.

    Raises:
        ConversionError: A module that has an adapter is absent, or has another shape.
    """
    merged = dict(llm)
    transposed = adapter.settings.get("fan_in_fan_out", False)
    for module, (a, b) in adapter.pairs.items():
        base = llm.get(f"llm.{module}.weight")
        if base is None:
            raise ConversionError(f"the LLM has no {module} for its adapter; give the LLM that it was trained on")
        turn = (module in adapter.embeddings) != transposed
        shape = (b.shape[0], a.shape[1])
        if base.shape != (shape[::-1] if turn else shape):
            raise ConversionError(
                f"the adapter of {module} is for weights of {shape}, the LLM has {base.shape}; give the LLM that it "
                "was trained on"
            )
        read = partial(_sum, base, a, b, adapter.scaling(module), turn)
        merged[f"llm.{module}.weight"] = StoredTensor(base.shape, base.dtype, read)
    return merged


def _sum(base: StoredTensor, a: StoredTensor, b: StoredTensor, scaling: float, turn: bool) -> Tensor:
    change = (b.read().float() @ a.read().float()) * scaling
    return (change.t() if turn else change).add_(base.read()).to(base.dtype)
