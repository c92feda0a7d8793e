"""Names and shapes that a checkpoint must have: of the model that its config describes, built without memory."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.published import published_depths, vote_llm, vote_shapes
from mg_llava.conversion.settings import ModelSettings
from mg_llava.models.counting import build_empty
from mg_llava.models.interfaces import Part
from mg_llava.models.parts import kind_of
from mg_llava.models.weights.folders import read_folder_config
from mg_llava.models.weights.report import Expected, Shape
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS


def parts_of(model: Mapping[str, Any] | None) -> tuple[Part, ...]:
    """The table of parts of a config's system; MG-LLaVA's without a config."""
    parts: tuple[Part, ...] = (MODELS.get("MGLLaVA") if model is None else kind_of(model)).parts
    return parts


def keys_of(parts: Iterable[Part], *roles: str) -> tuple[str, ...]:
    """First names of the tensors of the parts that have one of these roles."""
    return tuple(part.key for part in parts if part.role in roles)


def expected_parts(model: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Keys of the parts that checkpoints of a config hold: the LLM, the connectors, and encoders that it trains."""
    parts = parts_of(model)
    trained = (model or {}).get("trains") or ()
    encoders = tuple(part.key for part in parts if part.role == "encoder" and part.config in trained)
    return keys_of(parts, "llm") + keys_of(parts, "connector") + encoders


def expect(
    settings: ModelSettings | None, tensors: TensorMap, folder: Path | None, adapters_apart: bool
) -> tuple[Expected, dict[str, str]]:
    """Names and shapes that a checkpoint must have: of the config's model, or after a vote where nothing says them.

    Args:
        settings: Of its training, as far as they are known.
        tensors: Its tensors under the model's names.
        folder: The LLM's folder, if there is one.
        adapters_apart: Whether the LLM has adapters that are not merged.

    Returns:
        What must be there; and further names of tied weights of the LLM with the names that they stand for, without
        ``llm.``.

    Raises:
        ConversionError: The parts do not go together, or the folder holds no causal LM.
    """
    expected = _connectors(settings, tensors, folder)
    tied: dict[str, str] = {}
    shapes, open_parts = dict(expected.shapes), list(expected.open_parts)
    if any(key.startswith("llm.") for key in tensors):
        if (
            folder is None or adapters_apart or not read_folder_config(folder)
        ):  # what else the LLM has cannot be judged
            shapes |= vote_llm(tensors, width_of(tensors, None))
            open_parts.append("llm")
        else:
            trust = bool(settings and settings.llm.get("trust_remote_code"))
            llm, tied = _llm_shapes(folder, trust)
            shapes |= llm
    return Expected(shapes, expected.source, [f"llm.{name}" for name in tied], open_parts), tied


def _connectors(settings: ModelSettings | None, tensors: TensorMap, folder: Path | None) -> Expected:
    if settings is None:
        return Expected(vote_shapes(tensors), "after the others")
    try:
        return Expected(_own_shapes(settings.model, width_of(tensors, folder)))
    except FileNotFoundError:  # nothing says how large its encoders are
        connectors = [part for part in parts_of(settings.model) if part.role == "connector"]
        depths, others = published_depths({part.key: settings.model.get(part.config) for part in connectors})
        return Expected(vote_shapes(tensors, depths, others), "after the others", open_parts=others)


def _own_shapes(model: Mapping[str, Any], width: int) -> dict[str, Shape]:
    """Names and shapes of what is saved of a config's model beside an LLM of hidden size D ``width``."""
    try:
        has_llm = bool(keys_of(parts_of(model), "llm"))
        llm = model.get("llm") if _asks_llm(model) or not has_llm else _Width(width)
        built = build_empty({**model, "llm": llm, "trains": None})
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"the config's model cannot be built: {error}") from error
    saved = expected_parts(model)
    return {
        f"{part.key}.{name}": tuple(tensor.shape)
        for part, module in built.named_parts()
        if part.role != "llm" and part.key in saved
        for name, tensor in module.state_dict().items()
    }


def _asks_llm(model: Mapping[str, Any]) -> bool:
    """True where a connector is built from more of the LLM than its hidden size."""
    configs = [model.get(part.config) for part in parts_of(model) if part.role == "connector"]
    return any("llm" in inspect.signature(kind_of(config)).parameters for config in configs if config is not None)


class _Width(nn.Module):
    """Stands for an LLM of which the hidden size alone is asked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(1, width)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings


def width_of(tensors: TensorMap, folder: Path | None) -> int:
    """D, hidden size of the LLM: of its folder, else of its own tensors, else of what the connectors end with."""
    config = read_folder_config(folder) if folder is not None else {}
    config = config.get("text_config", config)
    own = [t.shape[-1] for key, t in tensors.items() if key.endswith((".embed_tokens.weight", ".model.norm.weight"))]
    ends = [tensor.shape[0] for key, tensor in tensors.items() if key.startswith("projector.") and tensor.shape]
    return int(next(iter([*filter(None, [config.get("hidden_size")]), *own, *reversed(ends)]), 1))


def _llm_shapes(folder: Path, trust_remote_code: bool) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes of the LLM that a folder's configuration describes, and further names of its tied weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        text = read_folder_config(folder).get("text_config")
        if text is None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:  # a folder of the whole model
            config = AutoConfig.for_model(**text)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise ConversionError(f"{folder} holds no causal LM: {str(error).splitlines()[0]}") from error
    model.tie_weights()
    names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: names[id(parameter)] for name, parameter in every.items() if names[id(parameter)] != name}
    return {f"llm.{name}": tuple(p.shape) for name, p in every.items() if name not in tied}, tied
