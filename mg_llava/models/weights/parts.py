"""The weights that a stage saves, and loading them back with an account of every key.

Connectors are saved, trained or not, for nothing else has them; encoders and the LLM where they are trained (of an LLM
with adapters these alone). Names are the reference's: ``fuse_module.``, ``projector.``, ``bbox_projector.``, ``llm.``.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.adapters.lora import WRAPPED
from mg_llava.models.weights.loading import StateDict, fill, full_shape
from mg_llava.models.weights.stored import nonfinite_message, nonfinite_names


def trained_keys(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_parts(model: nn.Module) -> set[str]:
    """Keys of the parts that a checkpoint of this model must hold: what is trained, and all connectors."""
    connectors = {part.key for part in getattr(model, "parts", ()) if part.role == "connector"}
    named = ((name.split(".", 1)[0], parameter) for name, parameter in model.named_parameters())
    return {part for part, parameter in named if parameter.requires_grad or part in connectors}


def saved_state_dict(model: nn.Module, state: StateDict) -> StateDict:
    """Keep what belongs into a checkpoint: all of every part that is saved; ``state`` is changed.

    Of an LLM with adapters only the adapters are kept, as PEFT names them.
    """
    trained, parts = trained_keys(model), saved_parts(model)
    with_adapters = _has_adapters(model)
    unwanted = [
        key
        for key in state
        if (part := key.split(".", 1)[0]) not in parts or (part == "llm" and with_adapters and key not in trained)
    ]
    for key in unwanted:
        del state[key]
    return state


@dataclass
class LoadReport:
    """Tensors that a checkpoint had for a model."""

    loaded: dict[str, int] = field(default_factory=dict)
    """Number of tensors that were loaded, by part."""
    missing: list[str] = field(default_factory=list)
    """Required keys that the checkpoint lacks."""
    unexpected: list[str] = field(default_factory=list)
    """Keys of the checkpoint that the model does not have."""
    misshapen: list[str] = field(default_factory=list)
    """Keys whose shapes differ, with both shapes."""
    ignored: int = 0
    """Keys that are known to be of no use, such as rotary buffers of older releases."""

    def __str__(self) -> str:
        """One line a part, then what did not fit."""
        lines = [f"{part}: {count} tensors loaded" for part, count in self.loaded.items()]
        for name in ("missing", "unexpected", "misshapen"):
            keys = getattr(self, name)
            if keys:
                lines.append(f"{len(keys)} {name}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}")
        return "\n".join(lines)


def load_parts(model: nn.Module, state: StateDict, source: str, require: Collection[str] | None = None) -> LoadReport:
    """Load a checkpoint into a model and account for every key.

    Args:
        model: A :class:`mg_llava.models.system.System`.
        state: The checkpoint's tensors; ``module.`` prefixes are dropped, and adapters may lack PEFT's ``default``.
        source: Path of the checkpoint, for messages.
        require: Parts that must be there; ``None`` requires every part that is saved. A part that is there must be
            complete in any case.

    Returns:
        The report, which is logged too.

    Raises:
        ValueError: If a required part is absent, a part is incomplete, a shape differs, nothing of a part fits, a
            tensor holds nan or inf, or tensors differ that are one in the model. The model is unchanged then.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    # encoders that no stage trains come from their own folders
    frozen = _frozen_encoders(model)
    own = {name: tensor for name, tensor in _all_tensors(model) if name.split(".", 1)[0] not in frozen}
    if _has_adapters(model):
        state = _name_adapters(state, own)
    trained = trained_keys(model)
    require = saved_parts(model) if require is None else set(require)
    report = LoadReport()
    fitting: StateDict = {}
    for key, value in state.items():
        if key.endswith("rotary_emb.inv_freq"):
            report.ignored += 1
        elif key not in own:
            report.unexpected.append(key)
        elif tuple(value.shape) != full_shape(own[key]):
            report.misshapen.append(f"{key} {tuple(value.shape)} here, {full_shape(own[key])} in the model")
        else:
            fitting[key] = value
            part = key.split(".", 1)[0]
            report.loaded[part] = report.loaded.get(part, 0) + 1
    needed = needed_keys(model, trained, {*require, *report.loaded})
    report.missing = [name for name in needed if name not in state]
    _raise_on_other_tuning(model, state, source)
    _raise_on_misfit(report, state, source, require, {name.split(".", 1)[0] for name in own})
    if names := nonfinite_names(fitting):
        raise ValueError(nonfinite_message(source, names))
    _raise_on_untied(fitting, own, source)
    _assign(model, fitting)
    level = logging.WARNING if report.unexpected else logging.INFO
    print_log(f"checkpoint {source}\n{report}", logger="current", level=level)
    return report


def needed_keys(model: nn.Module, trained: set[str], parts: Collection[str]) -> list[str]:
    """Parameters of ``parts`` that a checkpoint must hold: adapters alone where there are, the first of tied ones."""
    with_adapters = _has_adapters(model)
    return [
        name
        for name, _ in model.named_parameters()
        if (part := name.split(".", 1)[0]) in parts and (name in trained or not (part == "llm" and with_adapters))
    ]


def _frozen_encoders(model: nn.Module) -> set[str]:
    """Keys of the encoders of which nothing is trained."""
    trained = {name.split(".", 1)[0] for name in trained_keys(model)}
    return {part.key for part in getattr(model, "parts", ()) if part.role == "encoder"} - trained


def _has_adapters(model: nn.Module) -> bool:
    return hasattr(getattr(model, "llm", None), "peft_config")


def _name_adapters(state: StateDict, own: Collection[str]) -> StateDict:
    """Give adapters that were saved without the adapter's name, as PEFT and XTuner do, the model's own names."""
    full = {name.replace(".default", ""): name for name in own if ".default" in name}
    return {full.get(key, key) if key not in own else key: value for key, value in state.items()}


def _all_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    persistent = nn.Module.state_dict(model)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _raise_on_misfit(
    report: LoadReport, state: StateDict, source: str, require: Collection[str], own_parts: Collection[str]
) -> None:
    problems = []
    absent = [part for part in sorted(require) if not any(key.startswith(part + ".") for key in state)]
    if absent:
        found = sorted({key.split(".", 1)[0] for key in state})
        problems.append(f"the whole part {', '.join(absent)} is absent (the checkpoint has: {', '.join(found)})")
        if absent == ["llm"]:
            problems.append("where its LLM is a folder of its own, build the model with that path and tuning='frozen'")
    if report.missing and not all(key.split(".", 1)[0] in absent for key in report.missing):
        keys = [key for key in report.missing if key.split(".", 1)[0] not in absent]
        problems.append(f"{len(keys)} keys are missing, e.g. {keys[0]}")
    if report.misshapen:
        problems.append(f"{len(report.misshapen)} shapes differ, e.g. {report.misshapen[0]}")
    strange = {key.split(".", 1)[0] for key in report.unexpected} & (
        set(own_parts) - set(report.loaded) - set(require)
    )
    if strange and not report.misshapen:
        problems.append(f"nothing of its {', '.join(sorted(strange))} fits; build the model as it was trained")
    if not problems and not report.loaded:
        problems.append("none of its keys belongs to this model")
    if problems:
        hint = f"; keys the model does not know: {', '.join(report.unexpected[:3])}" if report.unexpected else ""
        raise ValueError(f"{source} does not fit this model: " + "; ".join(problems) + hint)


def _raise_on_other_tuning(model: nn.Module, state: StateDict, source: str) -> None:
    """Stop where a tuned LLM would be lost because adapters are on one side alone.

    Adapters are saved without the LLM below them, so that it has to be a folder.
    """
    keys = [key for key in state if key.startswith("llm.")]
    stored = any(key.startswith(f"llm.{WRAPPED}") or ".lora_" in key for key in keys)
    if not keys or stored == _has_adapters(model):
        return
    kinds = ("with LoRA adapters", "as a whole")
    raise ValueError(
        f"{source} does not fit this model: its LLM was tuned {kinds[not stored]}, and this one is built "
        f"{kinds[stored].replace('as a whole', 'without adapters')}. To answer with it, build the model as it was "
        f"trained. To go on from it, write the tuned LLM as a folder: python tools/convert_checkpoint.py {source} OUT "
        "--to parts; then set llm_name_or_path='OUT/llm' and pretrained_pth='OUT/vision_part.safetensors'"
    )


def _raise_on_untied(fitting: StateDict, own: StateDict, source: str) -> None:
    """Stop where the second of two names of one tensor would overwrite the first with something else."""
    first: dict[int, str] = {}
    for key, value in fitting.items():
        other = first.setdefault(id(own[key]), key)
        if other != key and not torch.equal(value, fitting[other]):
            raise ValueError(
                f"{source} does not fit this model: {other} and {key} differ, but are one matrix here; build it with "
                "an LLM whose config.json has tie_word_embeddings=false, as it was trained"
            )


@torch.no_grad()
def _assign(model: nn.Module, state: StateDict) -> None:
    """Copy tensors into the model."""
    tensors = dict(_all_tensors(model))
    for key, value in state.items():
        fill(tensors[key], lambda value=value: value)  # type: ignore[misc]
