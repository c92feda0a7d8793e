"""The trunk of an OpenCLIP ConvNeXt: maps of all stages of the canvas.

Shapes: N pictures, S side of the canvas in pixels, C_s channels of stage s.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.architectures import ArchitectureError, find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.interfaces import Seen, Spec
from mg_llava.models.weights.guard import safe_torch_load
from mg_llava.models.weights.loading import create_timm_model, require_folder
from mg_llava.models.weights.stored import TensorMap, map_state_dict, map_weights
from mg_llava.registry import MODELS

CONFIG = "open_clip_config.json"
_STEMS = ("open_clip_model", "open_clip_pytorch_model")
_TRUNK = "visual.trunk."
_NOT_TRUNK = {
    "text tower": ("text", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "attn_mask"),
    "projection head": ("visual.head.",),
    "trunk norm and head": ("visual.trunk.head.", "visual.trunk.norm.", "visual.trunk.norm_pre."),
    "logit scale": ("logit_scale", "logit_bias"),
}
"""Parts of an open_clip model beside the trunk's stem and stages, by prefix of their keys."""
_STAGES: dict[str, Any] = {}
"""What timm says of the stages of a model with some arguments; it says so of a built one alone."""


@MODELS.register_module()
class OpenCLIPConvNeXtEncoder(VisionEncoder):
    """Trunk of an OpenCLIP ConvNeXt, of any size that open_clip or timm know.

    A folder may hold other depths or widths than the model it names: they are taken from ``timm_model_kwargs`` in
    ``open_clip_config.json`` where given, else from the shapes of the weights.

    Args:
        path: An open_clip folder (``open_clip_config.json`` with ``open_clip_model.safetensors`` or
            ``open_clip_pytorch_model.bin``), or an open_clip model name.
        image_size: Side S of the canvas in pixels, a multiple of the coarsest stride.
        pretrained: With a model name: open_clip's weight tag, or ``None`` for random weights.
        dtype: Dtype of weights and computation, e.g. ``"bfloat16"``; ``"auto"`` is bfloat16 on CUDA, else float32.

    Raises:
        FileNotFoundError: If a file of the folder is absent.
        ValueError: If the folder holds another kind of model or its weights do not fit.
    """

    def __init__(self, path: str, image_size: int, pretrained: str | None = None, dtype: str = "auto") -> None:
        super().__init__({"path": path, "image_size": image_size, "pretrained": pretrained}, dtype)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        path = str(config["path"])
        folder = Path(path) if Path(path).is_dir() else None
        if folder is not None:
            require_folder(folder, CONFIG, f"an open_clip folder ({CONFIG} and weights)", False)
        try:
            found = find_architecture(path, "open_clip")
        except ArchitectureError:
            if folder is None and not _looks_like_folder(path):
                _check_name(path)  # whose error has the nearest names
            raise
        place = path if folder is None else str(folder / CONFIG)
        vision = found.config.get("model_cfg", found.config).get("vision_cfg", {})
        name = vision.get("timm_model_name")
        if not name:
            raise ValueError(
                f"{place}: vision_cfg names no timm_model_name, so this is no ConvNeXt; the high-resolution encoder "
                "needs one such as CLIP-convnext_large_d_320"
            )
        kwargs = {} if folder is None else _read_kwargs(folder)
        kwargs |= dict(vision.get("timm_model_kwargs") or {})
        preprocess = found.config.get("preprocess_cfg", {})
        mean, std = preprocess.get("mean", CLIP_MEAN), preprocess.get("std", CLIP_STD)
        return cls.spec_of(name, kwargs, config["image_size"], mean, std, place, found.source)

    @classmethod
    def spec_of(
        cls,
        name: str,
        kwargs: Mapping[str, Any],
        image_size: int,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        place: str = "the config",
        source: str = "",
    ) -> Spec:
        """The spec of a timm ConvNeXt with these arguments; ``place`` names them in messages."""
        key = repr((name, sorted(kwargs.items())))
        if key not in _STAGES:
            with torch.device("meta"):
                _STAGES[key] = _make_trunk(name, kwargs, place).feature_info
        info = _STAGES[key]
        spec = Spec(
            type=cls.__name__,
            image_size=image_size,
            mean=tuple(mean),
            std=tuple(std),
            stage_channels=tuple(stage["num_chs"] for stage in info),
            stage_strides=tuple(stage["reduction"] for stage in info),
            architecture={"name": name, "kwargs": dict(kwargs)},
            source=source,
        )
        check_size(spec, place)
        return spec

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`."""
        path = str(config["path"])
        if _looks_like_folder(path):
            require_folder(path, CONFIG, f"an open_clip folder ({CONFIG} and weights)", False)
            file = _find_weights(Path(path))
            trunk, dropped = _split_trunk(_unwrapped(map_weights(file)[0]), file)
            print_log(
                f"high-resolution encoder: {len(trunk)} tensors from {file}; not needed and dropped: "
                + (", ".join(f"{count} of the {part}" for part, count in dropped.items()) or "none"),
                logger="current",
            )
        else:
            _check_name(path)
            trunk = map_state_dict(_trunk_of_tag(path, config.get("pretrained")).state_dict())
        kept = ("stem.", "stages.")
        unknown = [key for key in trunk if not key.startswith((*kept, "norm_pre.", "head."))]
        wanted = {key: tensor for key, tensor in trunk.items() if key.startswith(kept) or key in unknown}
        return {key if key in unknown else f"vision_{key}": tensor for key, tensor in wanted.items()}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        trunk: Any = _make_trunk(spec.architecture["name"], spec.architecture["kwargs"], "the spec")
        self.vision_stem, self.vision_stages = trunk.stem, trunk.stages

    def settle(self) -> None:
        """Keep the convolutions' weights in the layout that they compute in."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def see(self, pixels: Tensor) -> Seen:
        """Maps ``(N, C_s, S / stride_s, S / stride_s)`` of all stages."""
        hidden = self.vision_stem(pixels.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.vision_stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return Seen(maps=maps)


def check_size(spec: Spec, name: str) -> None:
    """Refuse a canvas that the stages do not divide.

    Raises:
        ValueError: It is no multiple of the coarsest stride.
    """
    coarsest = max(spec.stage_strides)
    if spec.image_size % coarsest:
        below = spec.image_size // coarsest * coarsest
        raise ValueError(
            f"image_size={spec.image_size} is not a multiple of {coarsest}, the coarsest stride of {name}; use "
            f"{below} or {below + coarsest}"
        )


def _make_trunk(name: str, kwargs: Mapping[str, Any], place: str) -> nn.Module:
    trunk = create_timm_model(name, place, num_classes=0, **kwargs)
    if not (hasattr(trunk, "stem") and hasattr(trunk, "stages")):
        raise ValueError(f"{place} is no ConvNeXt ({type(trunk).__name__}); use TimmEncoder for other backbones")
    return trunk


def _weight_files(folder: Path) -> list[Path]:
    """Where a folder may have its weights; safetensors win."""
    return [folder / f"{stem}{suffix}" for suffix in (".safetensors", ".bin") for stem in _STEMS]


def _find_weights(folder: Path) -> Path:
    candidates = _weight_files(folder)
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        names = ", ".join(file.name for file in candidates)
        raise FileNotFoundError(f"{folder} has no weights; expected one of {names}")
    return file


def _read_kwargs(folder: Path) -> dict[str, Any]:
    """Depths, widths and options of the trunk from the shapes of a folder's weights; none where it has no weights."""
    if not any(file.is_file() for file in _weight_files(folder)):
        return {}
    tensors = _unwrapped(map_weights(_find_weights(folder))[0])
    return infer_convnext_kwargs({key.removeprefix(_TRUNK): tensor for key, tensor in tensors.items()})


def infer_convnext_kwargs(trunk: Mapping[str, Any]) -> dict[str, Any]:
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
        kwargs["conv_mlp"] = len(trunk["stages.0.blocks.0.mlp.fc1.weight"].shape) == 4
    kwargs["ls_init_value"] = 1.0 if any(key.endswith(".gamma") for key in trunk) else None  # a value that is replaced
    kwargs["use_grn"] = any(".mlp.grn." in key for key in trunk)
    return kwargs


def _split_trunk(state: TensorMap, file: Path) -> tuple[TensorMap, Counter[str]]:
    """Keep ``visual.trunk.{stem,stages}`` of an open_clip model, and count what is dropped knowingly.

    Returns:
        The trunk's tensors without the ``visual.trunk.`` prefix, and the number of dropped tensors by part.

    Raises:
        ValueError: If there is no trunk.
    """
    trunk: TensorMap = {}
    dropped: Counter[str] = Counter()
    for key, value in state.items():
        part = next((name for name, prefixes in _NOT_TRUNK.items() if key.startswith(prefixes)), None)
        if part is not None:
            dropped[part] += 1
        elif key.startswith(_TRUNK):
            trunk[key.removeprefix(_TRUNK)] = value
        else:
            dropped[f"unknown part {key.split('.')[0]}"] += 1
    if not trunk:
        raise ValueError(
            f"{file} has no visual.trunk.* keys (first key: {next(iter(state))}); expected an open_clip ConvNeXt"
        )
    return trunk, dropped


def _unwrapped(tensors: TensorMap) -> TensorMap:
    """Names without the prefix that a wrapper for several GPUs leaves."""
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def _looks_like_folder(path: str) -> bool:
    return Path(path).exists() or ("/" in path and not path.startswith("hf-hub:"))


def _check_name(name: str) -> None:
    import open_clip

    if not name.startswith("hf-hub:") and name not in open_clip.list_models():
        near = get_close_matches(name, open_clip.list_models(), n=3)
        raise ValueError(
            f"{name!r} is neither an open_clip folder nor a model that open_clip knows; nearest names: {near}"
        )


def _trunk_of_tag(name: str, pretrained: str | None) -> nn.Module:
    import open_clip

    with safe_torch_load():
        visual = open_clip.create_model(name, pretrained=pretrained).visual
    return getattr(visual, "trunk", visual)
