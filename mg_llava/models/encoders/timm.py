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
            backbone: Any = create_timm_model(name, cls.__name__, features_only=True, **kwargs)
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
            backbone = create_timm_model(
                config["name"], cls.__name__, pretrained=pretrained, features_only=True, **kwargs
            )
        own = map_state_dict(backbone.state_dict())
        if checkpoint is not None:
            own = _feature_names(map_weights(Path(checkpoint))[0], own, Path(checkpoint))
        return {f"backbone.{name}": tensor for name, tensor in own.items()}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        from timm.layers import Format

        name, kwargs = spec.architecture["name"], spec.architecture["kwargs"]
        self.backbone = create_timm_model(name, type(self).__name__, features_only=True, **kwargs)
        self.channels_last = getattr(self.backbone, "output_fmt", None) == Format.NHWC

    def see(self, pixels: Tensor) -> Seen:
        """Maps ``(N, C_s, S / stride_s, S / stride_s)`` of all stages."""
        maps = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        # some backbones (Swin) give (N, H, W, C)
        return Seen(maps=[item.permute(0, 3, 1, 2) for item in maps] if self.channels_last else list(maps))


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
