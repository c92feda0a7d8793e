"""Reading weights that come from elsewhere: safely, and with every key accounted for."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.weights.guard import safe_torch_load

StateDict = dict[str, Tensor]
T = TypeVar("T")

NOT_TRUNK = {
    "text tower": ("text", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "attn_mask"),
    "projection head": ("visual.head.",),
    "trunk norm and head": ("visual.trunk.head.", "visual.trunk.norm.", "visual.trunk.norm_pre."),
    "logit scale": ("logit_scale", "logit_bias"),
}
"""Parts of an open_clip model beside the trunk's stem and stages, by prefix of their keys."""


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Torch dtype of a config's name; ``"auto"`` is bfloat16 where CUDA can do it, else float32.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise ValueError(f"unknown dtype {dtype!r}; known: auto, {', '.join(names)}")
    return names[dtype]


def on_meta() -> bool:
    """Whether modules are built without weights now: inside ``with torch.device("meta")``."""
    return torch.empty(0).is_meta


def require_folder(path: str | Path, file: str, what: str, allow_hub: bool = True) -> None:
    """Raise one clear error when a local folder is absent or lacks ``file``.

    With ``allow_hub`` a path of the form ORGANIZATION/NAME passes unless a folder ORGANIZATION exists here.

    Raises:
        FileNotFoundError: With what was found and what is expected.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / file).is_file():
            found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"{folder} has no {file}; expected {what}, found: {found}")
    elif folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; expected {what}")
    elif not allow_hub or folder.is_absolute() or len(folder.parts) != 2 or Path(folder.parts[0]).exists():
        raise FileNotFoundError(f"{folder} does not exist; expected {what}. Check the path in the config")


def load_hugging_face(model_class: Any, path: str, **kwargs: Any) -> Any:
    """``model_class.from_pretrained`` with every weight accounted for.

    Args:
        model_class: A model or auto class of transformers.
        path: Folder or hub name.
        **kwargs: Passed on.

    Raises:
        FileNotFoundError: If the folder has no weights.
        ValueError: If they are damaged, of other shapes than the configuration says, or incomplete; transformers
            would fill in random ones.
    """
    from safetensors import SafetensorError

    folder = Path(path)
    kinds = ("model*.safetensors", "pytorch_model*.bin")
    if folder.is_dir() and not any(file for kind in kinds for file in folder.glob(kind)):
        raise FileNotFoundError(f"{folder} has no weights; expected {' or '.join(kinds)}")
    try:
        with safe_torch_load():
            model, report = model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the weights in {path} cannot be read, a file is damaged or truncated: {error}") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"the weights in {path} have other shapes than its config.json says: {error}") from error
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are missing, e.g. {missing[0]}; the folder is "
            "incomplete or holds another kind of model"
        )
    return model


def find_weights(folder: Path, stems: Sequence[str]) -> Path:
    """The first existing ``STEM.safetensors`` or ``STEM.bin``; safetensors win.

    Raises:
        FileNotFoundError: If there is none.
    """
    candidates = [folder / f"{stem}{suffix}" for suffix in (".safetensors", ".bin") for stem in stems]
    for file in candidates:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} has no weights; expected one of {', '.join(file.name for file in candidates)}")


def split_trunk(state: Mapping[str, T], file: Path) -> tuple[dict[str, T], Counter[str]]:
    """Keep ``visual.trunk.{stem,stages}`` of an open_clip model, and count what is dropped knowingly.

    Returns:
        The trunk's tensors without the ``visual.trunk.`` prefix, and the number of dropped tensors by part.

    Raises:
        ValueError: If there is no trunk.
    """
    trunk: dict[str, T] = {}
    dropped: Counter[str] = Counter()
    for key, value in state.items():
        part = next((name for name, prefixes in NOT_TRUNK.items() if key.startswith(prefixes)), None)
        if part is not None:
            dropped[part] += 1
        elif key.startswith("visual.trunk."):
            trunk[key.removeprefix("visual.trunk.")] = value
        else:
            dropped[f"unknown part {key.split('.')[0]}"] += 1
    if not trunk:
        raise ValueError(
            f"{file} has no visual.trunk.* keys (first key: {next(iter(state))}); expected an open_clip ConvNeXt"
        )
    return trunk, dropped


def infer_convnext_kwargs(trunk: StateDict) -> dict[str, Any]:
    """Depths, widths and block options of a timm ConvNeXt from the names and shapes of its weights."""
    blocks = [re.match(r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.weight", key) for key in trunk]
    depths: dict[int, int] = {}
    for match in filter(None, blocks):
        stage, block = int(match[1]), int(match[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    if not depths:
        return {}
    first = [trunk[f"stages.{stage}.blocks.0.conv_dw.weight"] for stage in sorted(depths)]
    kwargs: dict[str, Any] = {
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "dims": tuple(weight.shape[0] for weight in first),
        "kernel_sizes": tuple(weight.shape[-1] for weight in first),
    }
    if "stages.0.blocks.0.mlp.fc1.weight" in trunk:
        kwargs["conv_mlp"] = trunk["stages.0.blocks.0.mlp.fc1.weight"].ndim == 4
    kwargs["ls_init_value"] = 1.0 if any(key.endswith(".gamma") for key in trunk) else None  # a value that is replaced
    kwargs["use_grn"] = any(".mlp.grn." in key for key in trunk)
    return kwargs


def create_timm_model(name: str, source: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` with one kind of error.

    Args:
        name: timm model name.
        source: Where the name comes from, for messages.
        **kwargs: Passed on.

    Raises:
        ValueError: If timm does not know the model, or the model does not take the arguments.
    """
    import timm

    try:
        with safe_torch_load():
            return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ValueError(f"{source}: timm's {name!r} does not take these arguments: {error}") from error
    except RuntimeError as error:
        if timm.is_model(name):
            raise
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"{source}: timm knows no model {name!r}; nearest names: {near}") from error


def feature_names(state: Mapping[str, T], own: Mapping[str, Any], file: Path) -> dict[str, T]:
    """A whole timm model's tensors under the names of its ``features_only`` form, without those that it lacks.

    Args:
        state: Tensors of the whole model; timm names its first modules differently.
        own: Those of its ``features_only`` form.
        file: Where the first are from, for messages.
    """
    named = {
        key if key in own else re.sub(r"^([^.]+)\.(\d+)\.", r"\1_\2.", key): value for key, value in state.items()
    }
    dropped = Counter(key.split(".")[0] for key in named if key not in own)
    print_log(
        f"{len(own)} tensors from {file}; not needed and dropped: "
        + (", ".join(f"{count} of {part}" for part, count in dropped.items()) or "none"),
        logger="current",
    )
    return {key: value for key, value in named.items() if key in own}


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of a parameter, whole where ZeRO-3 has split it."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


@torch.no_grad()
def fill(target: Tensor, read: Callable[[], Tensor]) -> None:
    """Copy what ``read`` gives into a tensor of a model; one that ZeRO-3 has split is gathered for it."""
    if not hasattr(target, "ds_id"):
        target.copy_(read())
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            target.copy_(read())
