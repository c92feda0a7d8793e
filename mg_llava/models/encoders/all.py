"""Frozen vision encoders: a low-resolution one that gives tokens, a high-resolution one that gives stage maps.

Both run without autograd, in eval mode whatever ``train()`` says, without checkpointing, in their own dtype. Sizes
that others need (channels, grids, strides) are read from the networks.

Shapes: N pictures, s / S side of the low / high view in pixels, C channels, h x w grid of tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.weights.loading import (
    create_timm_model,
    find_weights,
    infer_convnext_kwargs,
    load_exactly,
    load_feature_weights,
    load_hugging_face,
    read_weights,
    require_folder,
    resolve_dtype,
    split_trunk,
)
from mg_llava.registry import MODELS


class FrozenEncoder(nn.Module):
    """Base of both encoders: no gradients, no dropout or stochastic depth, nothing in the checkpoint."""

    def freeze(self, dtype: str | torch.dtype) -> None:
        """Switch gradients and training behavior off and move to ``dtype`` (``"auto"``: bfloat16 on CUDA)."""
        self.requires_grad_(False)
        self.to(resolve_dtype(dtype))
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode: stochastic depth in a frozen encoder makes the loss of the same batch differ."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, to which inputs are cast."""
        return next(self.parameters()).dtype


@MODELS.register_module()
class CLIPEncoder(FrozenEncoder):
    """Hidden states of a Hugging Face CLIP or SigLIP vision model, class token dropped when there is one.

    Args:
        path: Folder or hub name of a CLIP or SigLIP model (whole, or its vision part alone).
        layer: Index into the hidden states as Hugging Face counts them; -2 is the one before the last. Layers after
            it are removed, not computed.
        dtype: Dtype of weights and computation, e.g. ``"bfloat16"``; ``"auto"`` is bfloat16 on CUDA, else float32.

    Raises:
        FileNotFoundError: If ``path`` is a folder without config or weights.
        ValueError: If the model is of another kind, or weights are missing in it.
    """

    def __init__(self, path: str, layer: int = -2, dtype: str = "auto") -> None:
        super().__init__()
        from transformers import AutoConfig

        require_folder(path, "config.json", "a Hugging Face CLIP or SigLIP folder (config.json and weights)")
        family, model_class = _vision_model_class(AutoConfig.from_pretrained(path).model_type, path)
        # said outright: transformers 4.48 falls back to eager attention for folders that it has saved itself
        model = load_hugging_face(model_class, path, torch_dtype=torch.float32, attn_implementation="sdpa")
        self._take(model, layer, path)
        self.image_mean, self.image_std = read_normalization(path, family)
        self.freeze(dtype)

    @classmethod
    def from_architecture(
        cls,
        config: Any,
        layer: int = -2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        dtype: str | torch.dtype = "auto",
        attention: str = "sdpa",
    ) -> "CLIPEncoder":
        """The encoder without its weights, for those that come with a whole model.

        Args:
            config: transformers' ``CLIPVisionConfig`` or ``SiglipVisionConfig``.
            layer: As for the class.
            image_mean: Per-channel mean for normalization.
            image_std: Per-channel standard deviation for normalization.
            dtype: As for the class.
            attention: Attention backend, as transformers names it.
        """
        from transformers import AutoModel

        encoder = cls.__new__(cls)
        FrozenEncoder.__init__(encoder)
        _vision_model_class(config.model_type, "the vision config")
        encoder._take(AutoModel.from_config(config, attn_implementation=attention), layer, "the vision config")
        encoder.image_mean, encoder.image_std = tuple(image_mean), tuple(image_std)
        encoder.freeze(dtype)
        return encoder

    def _take(self, model: Any, layer: int, path: str) -> None:
        """Take the parts of a Hugging Face vision model that are needed up to ``layer``."""
        vision = model.vision_model
        depth = len(vision.encoder.layers)
        keep = layer if layer >= 0 else depth + 1 + layer
        if not 0 <= keep <= depth:
            raise ValueError(f"layer={layer} is out of range for {path}, which has {depth} layers")
        vision.encoder.layers = vision.encoder.layers[:keep]
        self.embeddings = vision.embeddings
        self.pre_norm = getattr(vision, "pre_layrnorm", nn.Identity())
        self.encoder = vision.encoder
        self.class_tokens = 1 if hasattr(vision.embeddings, "class_embedding") else 0
        self.image_size: int = model.config.image_size
        self.patch_size: int = model.config.patch_size
        self.hidden_size: int = model.config.hidden_size

    @property
    def grid(self) -> int:
        """Side of the square grid of tokens."""
        return self.image_size // self.patch_size

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens of a batch of pictures.

        Args:
            pixels: ``(N, 3, s, s)`` normalized.

        Returns:
            ``(N, h * w, C)`` in the encoder's dtype, row-major.
        """
        hidden = self.pre_norm(self.embeddings(pixels.to(self.dtype)))
        hidden = self.encoder(inputs_embeds=hidden).last_hidden_state
        return hidden[:, self.class_tokens :]


class StageEncoder(FrozenEncoder):
    """Interface of high-resolution encoders.

    Attributes:
        image_size: Side S of the canvas in pixels.
        stage_channels: Channels of each stage, finest first.
        stage_strides: Pixels per cell of each stage.
        image_mean: Per-channel mean for normalization.
        image_std: Per-channel standard deviation for normalization.
    """

    image_size: int
    stage_channels: list[int]
    stage_strides: list[int]
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD

    @property
    def grid(self) -> int:
        """Side of the square grid of the last stage."""
        return self.image_size // self.stage_strides[-1]

    def _check_size(self, name: str) -> None:
        coarsest = max(self.stage_strides)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {coarsest}, the coarsest stride of {name}; use "
                f"{self.image_size // coarsest * coarsest} or {(self.image_size // coarsest + 1) * coarsest}"
            )

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Maps ``(N, C_s, S / stride_s, S / stride_s)`` of all stages."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Stage maps of a batch of pictures.

        Args:
            pixels: ``(N, 3, S, S)`` normalized.

        Returns:
            For each stage ``(N, C_s, S / stride_s, S / stride_s)`` in the encoder's dtype, finest first.
        """
        return self.stages(pixels.to(dtype=self.dtype, memory_format=torch.channels_last))


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


@MODELS.register_module()
class TimmEncoder(StageEncoder):
    """Any timm backbone with ``features_only``.

    Args:
        name: timm model name.
        image_size: Side S of the canvas in pixels.
        checkpoint: Weights file of the whole model as timm saves it (safetensors, or a tensors-only pickle);
            ``None`` for random weights.
        pretrained: Take timm's own weights from the hub.
        out_indices: Stages to return; ``None`` for timm's default.
        dtype: As in :class:`OpenCLIPConvNeXtEncoder`.
        **kwargs: Passed to ``timm.create_model``.

    Raises:
        ValueError: If timm does not know the model, its weights do not fit, or the size is no multiple of the stride.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        checkpoint: str | None = None,
        pretrained: bool = False,
        out_indices: Sequence[int] | None = None,
        dtype: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        import timm
        from timm.layers import Format

        if out_indices is not None:
            kwargs["out_indices"] = tuple(out_indices)
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is not None and cfg.fixed_input_size:
            kwargs.setdefault("img_size", image_size)
        self.image_size = image_size
        self.backbone = create_timm_model(name, "TimmEncoder", pretrained=pretrained, features_only=True, **kwargs)
        if checkpoint is not None:
            load_feature_weights(self.backbone, read_weights(Path(checkpoint)), Path(checkpoint))
        self.stage_channels = list(self.backbone.feature_info.channels())
        self.stage_strides = list(self.backbone.feature_info.reduction())
        self.channels_last = getattr(self.backbone, "output_fmt", None) == Format.NHWC
        data = timm.data.resolve_model_data_config(self.backbone)
        self.image_mean, self.image_std = tuple(data["mean"]), tuple(data["std"])
        self._check_size(name)
        self.freeze(dtype)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """See :meth:`StageEncoder.stages`."""
        maps = self.backbone(pixels)
        # some backbones (Swin) give (N, H, W, C)
        return [item.permute(0, 3, 1, 2) for item in maps] if self.channels_last else list(maps)


def _looks_like_folder(path: str) -> bool:
    return Path(path).exists() or ("/" in path and not path.startswith("hf-hub:"))


def _vision_model_class(model_type: str, source: str) -> tuple[str, Any]:
    """Family (``clip`` or ``siglip``) and model class of a vision model, or of the model that it is a part of."""
    from transformers import CLIPVisionModel, SiglipVisionModel

    classes = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
    family = model_type.removesuffix("_vision_model")
    if family not in classes:
        raise ValueError(f"{source} holds a {model_type!r} model; the low-resolution encoder takes clip, siglip")
    return family, classes[family]


def read_normalization(path: str, family: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of a Hugging Face model's processor; those of its family where it says none."""
    from transformers.image_processing_utils import ImageProcessingMixin

    defaults = (CLIP_MEAN, CLIP_STD) if family == "clip" else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        return defaults
    return tuple(config.get("image_mean", defaults[0])), tuple(config.get("image_std", defaults[1]))
