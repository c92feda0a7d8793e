"""Reading weights that come from elsewhere: safely, and with every key accounted for."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mg_llava.models.weights.guard import safe_torch_load

StateDict = dict[str, Tensor]

_FILLS = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"}
"""Methods of tensors by which random weights are made."""


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
    """True where modules are built without weights: inside ``with torch.device("meta")``."""
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
        if not any(sign in str(error) for sign in ("size mismatch", "ignore_mismatched_sizes")):
            raise
        raise ValueError(f"the weights in {path} have other shapes than its config.json says: {error}") from error
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are missing, e.g. {missing[0]}; the folder is "
            "incomplete or holds another kind of model"
        )
    return model


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
        with safe_torch_load(), Unfilled(lambda tensor: tensor.is_meta):
            return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ValueError(f"{source}: timm's {name!r} does not take these arguments: {error}") from error
    except RuntimeError as error:
        if timm.is_model(name):
            raise
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"{source}: timm knows no model {name!r}; nearest names: {near}") from error


class Unfilled(TorchFunctionMode):
    """Leaves out the filling of tensors, which takes two thirds of the time that it takes to build a model.

    Args:
        spared: Which are left out.
    """

    def __init__(self, spared: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._spared = spared

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _FILLS and args and self._spared(args[0]):
            return args[0]
        return function(*args, **(kwargs or {}))


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of a parameter, whole where ZeRO-3 has split it."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


@torch.no_grad()
def fill_tensor(target: Tensor, read: Callable[[], Tensor]) -> None:
    """Copy what ``read`` gives into a tensor of a model; one that ZeRO-3 has split is gathered for it."""
    if not hasattr(target, "ds_id"):
        target.copy_(read())
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            target.copy_(read())
