"""Any timm backbone with stages: maps of the canvas.

Shapes: N pictures, S side of the canvas in pixels, C_s channels of stage s.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.convnext import check_size
from mg_llava.models.interfaces import Seen, Spec
from mg_llava.models.weights.loading import create_timm_model
from mg_llava.models.weights.stored import TensorMap, map_state_dict, map_weights
from mg_llava.registry import MODELS

_OWN = ("type", "name", "image_size", "checkpoint", "pretrained", "dtype")


@MODELS.register_module()
class TimmEncoder(VisionEncoder):
    """Any timm backbone with ``features_only``.

    Args:
        name: timm model name.
        image_size: Side S of the canvas in pixels.
        checkpoint: Weights file of the whole model as timm saves it (safetensors, or a tensors-only pickle);
            ``None`` for random weights.
        pretrained: Take timm's own weights from the hub.
        out_indices: Stages to return; ``None`` for timm's default.
        dtype: Dtype of weights and computation, e.g. ``"bfloat16"``; ``"auto"`` is bfloat16 on CUDA, else float32.
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
        own = {"name": name, "image_size": image_size, "checkpoint": checkpoint, "pretrained": pretrained}
        stages = {} if out_indices is None else {"out_indices": out_indices}
        super().__init__(own | stages | kwargs, dtype)

    @classmethod
    def create(cls, name: str, **kwargs: Any) -> Any:
        """The network of a name."""
        return create_timm_model(name, cls.__name__, features_only=True, **kwargs)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        import timm

        name, size = config["name"], config["image_size"]
        kwargs = {key: value for key, value in config.items() if key not in _OWN and value is not None}
        if "out_indices" in kwargs:
            kwargs["out_indices"] = tuple(kwargs["out_indices"])
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is not None and cfg.fixed_input_size:
            kwargs.setdefault("img_size", size)
        with torch.device("meta"):
            backbone: Any = cls.create(name, **kwargs)
        data = timm.data.resolve_model_data_config(backbone)
        spec = Spec(
            type=cls.__name__,
            image_size=size,
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            stage_channels=tuple(backbone.feature_info.channels()),
            stage_strides=tuple(backbone.feature_info.reduction()),
            architecture={"name": name, "kwargs": kwargs},
            source="timm",
        )
        check_size(spec, name)
        return spec

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`; without a checkpoint those that timm makes."""
        kwargs = cls.describe(config).architecture["kwargs"]
        checkpoint = config.get("checkpoint")
        pretrained = bool(config.get("pretrained")) and checkpoint is None
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if checkpoint is None else "meta"):
            backbone = cls.create(config["name"], pretrained=pretrained, **kwargs)
        own = map_state_dict(backbone.state_dict())
        if checkpoint is not None:
            own = _feature_names(map_weights(Path(checkpoint))[0], own, Path(checkpoint))
        return {f"backbone.{name}": tensor for name, tensor in own.items()}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        from timm.layers import Format

        name, kwargs = spec.architecture["name"], spec.architecture["kwargs"]
        self.backbone = self.create(name, **kwargs)
        self.channels_last = getattr(self.backbone, "output_fmt", None) == Format.NHWC

    def see(self, pixels: Tensor) -> Seen:
        """Maps ``(N, C_s, S / stride_s, S / stride_s)`` of all stages."""
        maps = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        # some backbones (Swin) give (N, H, W, C)
        return Seen(maps=[item.permute(0, 3, 1, 2) for item in maps] if self.channels_last else list(maps))


@MODELS.register_module()
class TimmTokenEncoder(TimmEncoder):
    """Tokens of a timm vision transformer after its last norm, such as EVA ViT-g.

    Args:
        name: timm model name.
        image_size: Side of the view; None for timm's.
        class_token: Whether the class token is among them, at the front.
        checkpoint: As of :class:`TimmEncoder`; tensors of blocks beyond ``depth`` are left out.
        pretrained: As of :class:`TimmEncoder`.
        dtype: As of :class:`TimmEncoder`.
        **kwargs: Passed to ``timm.create_model``, such as ``depth=39``.

    Raises:
        ValueError: As of :class:`TimmEncoder`; or the model is no vision transformer.
    """

    def __init__(
        self,
        name: str,
        image_size: int | None = None,
        class_token: bool = True,
        checkpoint: str | None = None,
        pretrained: bool = False,
        dtype: str = "auto",
        **kwargs: Any,
    ) -> None:
        own = {"name": name, "image_size": image_size, "class_token": class_token}
        own |= {"checkpoint": checkpoint, "pretrained": pretrained}
        VisionEncoder.__init__(self, own | kwargs, dtype)

    @classmethod
    def create(cls, name: str, **kwargs: Any) -> Any:
        """See :meth:`TimmEncoder.create`."""
        return create_timm_model(name, cls.__name__, num_classes=0, global_pool="", **kwargs)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        import timm

        name, size = config["name"], config.get("image_size")
        kwargs = {key: value for key, value in config.items() if key not in (*_OWN, "class_token")}
        if size is not None:
            kwargs["img_size"] = size
        with torch.device("meta"):
            backbone = cls.create(name, **kwargs)
        if not hasattr(backbone, "num_prefix_tokens") or not hasattr(backbone, "patch_embed"):
            raise ValueError(f"timm's {name!r} is no vision transformer; TimmEncoder gives the maps of other networks")
        data = timm.data.resolve_model_data_config(backbone)
        dropped = 0 if config.get("class_token", True) else backbone.num_prefix_tokens
        return Spec(
            type=cls.__name__,
            image_size=backbone.patch_embed.img_size[0],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            tokens=backbone.patch_embed.num_patches + backbone.num_prefix_tokens - dropped,
            channels=backbone.num_features,
            architecture={"name": name, "kwargs": kwargs, "dropped": dropped},
            source="timm",
        )

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        self.backbone = self.create(spec.architecture["name"], **spec.architecture["kwargs"])

    def see(self, pixels: Tensor) -> Seen:
        """Tokens ``(N, P, C)``."""
        return Seen(self.backbone.forward_features(pixels)[:, self.spec.architecture["dropped"] :])


def _feature_names(state: TensorMap, own: TensorMap, file: Path) -> TensorMap:
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
