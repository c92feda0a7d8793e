"""The weights that a stage saves, and loading them back with an account of every key.

Connectors are saved, trained or not, for nothing else has them; encoders and the LLM where they are trained (of an LLM
with adapters these alone). Names are the reference's: ``fuse_module.``, ``projector.``, ``bbox_projector.``, ``llm.``.
"""

import logging
from collections.abc import Collection, Iterable

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.adapters.lora import WRAPPED
from mg_llava.models.weights.loading import StateDict, fill_tensor, full_shape
from mg_llava.models.weights.report import Expected, KeyReport, check_keys, summarize
from mg_llava.models.weights.stored import map_state_dict, nonfinite_message, nonfinite_names


def trained_keys(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_parts(model: nn.Module) -> set[str]:
    """Keys of the parts that a checkpoint of this model must hold: what is trained, and all connectors."""
    connectors = {part.key for part in getattr(model, "parts", ()) if part.role == "connector"}
    named = ((_part(name), parameter) for name, parameter in model.named_parameters())
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
        if (part := _part(key)) not in parts or (part == "llm" and with_adapters and key not in trained)
    ]
    for key in unwanted:
        del state[key]
    return state


def load_parts(
    model: nn.Module,
    state: StateDict,
    source: str,
    require: Collection[str] | None = None,
    fresh: Collection[str] = (),
) -> KeyReport:
    """Load a checkpoint into a model and account for every key.

    Args:
        model: A :class:`mg_llava.models.system.System`.
        state: The checkpoint's tensors; ``module.`` prefixes are dropped, and adapters may lack PEFT's ``default``.
        source: Path of the checkpoint, for messages.
        require: Parts that must be there; ``None`` requires every part that is saved. A part that is there must be
            complete in any case.
        fresh: Keys of parts that keep the weights they have; the checkpoint must not hold them.

    Returns:
        The report, which is logged too.

    Raises:
        ValueError: A required part is absent, a part is incomplete, a shape differs, nothing of a part fits, a fresh
            part is there, a tensor holds nan or inf, or tensors differ that are one in the model. The model is
            unchanged then.
    """
    # encoders that no stage trains come from their own folders
    frozen = _frozen_encoders(model)
    own = {name: tensor for name, tensor in _all_tensors(model) if _part(name) not in frozen}
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if _has_adapters(model):
        state = _name_adapters(state, own)
    require = (saved_parts(model) if require is None else set(require)) - set(fresh)
    _raise_on_other_tuning(model, state, source)
    shapes = {name: full_shape(tensor) for name, tensor in own.items()}
    left_behind = getattr(model, "left_behind", ())
    ignored = [key for key in state if key.endswith("rotary_emb.inv_freq") or _part(key) in left_behind]
    tensors = map_state_dict({key: value for key, value in state.items() if key not in ignored})
    fitting = {key: state[key] for key, tensor in tensors.items() if shapes.get(key) == tensor.shape}
    loaded = {_part(key) for key in fitting}
    needed = set(needed_keys(model, trained_keys(model), {*require, *loaded}))
    report = check_keys(tensors, Expected(shapes, optional=shapes.keys() - needed), ignored=ignored)
    strange = {_part(key) for key in report.unknown} & {_part(name) for name in own} - loaded - require
    if problems := _misfits(report, loaded, set() if report.misshapen else strange, set(fresh)):
        raise ValueError(f"{source} does not fit this model: " + "; ".join(problems))
    if names := nonfinite_names(fitting):
        raise ValueError(nonfinite_message(source, names))
    _raise_on_untied(fitting, own, source)
    report.parts = summarize({key: tensors[key] for key in fitting})
    for key, value in fitting.items():
        fill_tensor(own[key], lambda value=value: value)  # type: ignore[misc]
    level = logging.WARNING if report.unknown else logging.INFO
    print_log(f"checkpoint {source}\n{report}", logger="current", level=level)
    return report


def _misfits(report: KeyReport, loaded: set[str], strange: set[str], fresh: set[str]) -> list[str]:
    """The report's problems with more about some: parts of which nothing fits, and fresh ones that are there."""
    problems = report.problems
    if report.missing_parts == ["llm"]:
        problems.append("where its LLM is a folder of its own, build the model with that path and tuning='frozen'")
    if strange:
        problems.append(f"nothing of its {', '.join(sorted(strange))} fits; build the model as it was trained")
    if there := sorted(report.parts.keys() & fresh):
        problems.append(f"fresh names {', '.join(there)}, which it holds; leave that out of fresh")
    return problems if problems or loaded else ["none of its keys belongs to this model"]


def _part(key: str) -> str:
    """Key of the part that a tensor belongs to."""
    return key.split(".", 1)[0]


def needed_keys(model: nn.Module, trained: set[str], parts: Collection[str]) -> list[str]:
    """Parameters of ``parts`` that a checkpoint must hold: adapters alone where there are, the first of tied ones."""
    with_adapters = _has_adapters(model)
    return [
        name
        for name, _ in model.named_parameters()
        if (part := _part(name)) in parts and (name in trained or not (part == "llm" and with_adapters))
    ]


def _frozen_encoders(model: nn.Module) -> set[str]:
    """Keys of the encoders of which nothing is trained."""
    trained = {_part(name) for name in trained_keys(model)}
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
        f"trained. To continue from it, write the tuned LLM as a folder: python tools/convert_checkpoint.py {source} "
        "OUT --to parts; then set llm_name_or_path='OUT/llm' and pretrained_pth='OUT/vision_part.safetensors'"
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
