"""High-resolution encoder: the trunk of an OpenCLIP ConvNeXt.

Shapes: N pictures, S side of the canvas in pixels, C channels of a stage.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.encoders.base import StageEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.weights.guard import safe_torch_load
from mg_llava.models.weights.loading import (
    create_timm_model,
    find_weights,
    infer_convnext_kwargs,
    load_exactly,
    read_weights,
    require_folder,
    split_trunk,
)
from mg_llava.registry import MODELS


@MODELS.register_module()
class OpenCLIPConvNeXtEncoder(StageEncoder):
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
        super().__init__()
        trunk = self._from_folder(Path(path)) if _looks_like_folder(path) else self._from_tag(path, pretrained)
        self._take(trunk, image_size, str(path))
        self.freeze(dtype)
        self.use_channels_last()

    @classmethod
    def from_architecture(
        cls,
        name: str,
        image_size: int,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        dtype: str | torch.dtype = "auto",
        **kwargs: Any,
    ) -> "OpenCLIPConvNeXtEncoder":
        """The encoder without its weights, for those that come with a whole model.

        Args:
            name: timm model name of the trunk.
            image_size: As for the class.
            image_mean: Per-channel mean for normalization.
            image_std: Per-channel standard deviation for normalization.
            dtype: As for the class.
            **kwargs: Passed to ``timm.create_model``, such as ``depths`` and ``dims``.
        """
        encoder = cls.__new__(cls)
        StageEncoder.__init__(encoder)
        encoder._take(create_timm_model(name, cls.__name__, num_classes=0, **kwargs), image_size, name)
        encoder.image_mean, encoder.image_std = tuple(image_mean), tuple(image_std)
        encoder.freeze(dtype)
        encoder.use_channels_last()
        return encoder

    def _take(self, trunk: nn.Module, image_size: int, source: str) -> None:
        """Take stem and stages of a timm ConvNeXt."""
        if not (hasattr(trunk, "stem") and hasattr(trunk, "stages")):
            raise ValueError(f"{source} is no ConvNeXt ({type(trunk).__name__}); use TimmEncoder for other backbones")
        self.image_size = image_size
        self.vision_stem = trunk.stem
        self.vision_stages = trunk.stages
        feature_info: Any = trunk.feature_info
        self.stage_channels = [info["num_chs"] for info in feature_info]
        self.stage_strides = [info["reduction"] for info in feature_info]
        self._check_size(source)

    def use_channels_last(self) -> None:
        """Keep the convolutions' weights in the layout that they compute in."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def _from_folder(self, folder: Path) -> nn.Module:
        require_folder(
            folder, "open_clip_config.json", "an open_clip folder (open_clip_config.json and weights)", False
        )
        config = json.loads((folder / "open_clip_config.json").read_text())
        vision = config.get("model_cfg", config).get("vision_cfg", {})
        name = vision.get("timm_model_name")
        if not name:
            raise ValueError(
                f"{folder / 'open_clip_config.json'}: vision_cfg names no timm_model_name, so this is no ConvNeXt; "
                "the high-resolution encoder needs one such as CLIP-convnext_large_d_320"
            )
        preprocess = config.get("preprocess_cfg", {})
        self.image_mean = tuple(preprocess.get("mean", CLIP_MEAN))
        self.image_std = tuple(preprocess.get("std", CLIP_STD))
        weights_file = find_weights(folder, ("open_clip_model", "open_clip_pytorch_model"))
        trunk_weights, dropped = split_trunk(read_weights(weights_file), weights_file)
        kwargs = infer_convnext_kwargs(trunk_weights) | dict(vision.get("timm_model_kwargs") or {})
        trunk = create_timm_model(name, str(folder / "open_clip_config.json"), num_classes=0, **kwargs)
        load_exactly(trunk, trunk_weights, weights_file, ignore=("norm_pre.", "head."))
        print_log(
            f"high-resolution encoder: {len(trunk_weights)} tensors from {weights_file}; not needed and dropped: "
            + (", ".join(f"{count} of the {part}" for part, count in dropped.items()) or "none"),
            logger="current",
        )
        return trunk

    def _from_tag(self, name: str, pretrained: str | None) -> nn.Module:
        import open_clip

        if not name.startswith("hf-hub:") and name not in open_clip.list_models():
            from difflib import get_close_matches

            near = get_close_matches(name, open_clip.list_models(), n=3)
            raise ValueError(
                f"{name!r} is neither an open_clip folder nor a model that open_clip knows; nearest names: {near}"
            )
        with safe_torch_load():
            visual = open_clip.create_model(name, pretrained=pretrained).visual
        self.image_mean = tuple(getattr(visual, "image_mean", None) or CLIP_MEAN)
        self.image_std = tuple(getattr(visual, "image_std", None) or CLIP_STD)
        return getattr(visual, "trunk", visual)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """See :meth:`StageEncoder.stages`."""
        hidden = self.vision_stem(pixels)
        maps = []
        for stage in self.vision_stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return maps


def _looks_like_folder(path: str) -> bool:
    return Path(path).exists() or ("/" in path and not path.startswith("hf-hub:"))
