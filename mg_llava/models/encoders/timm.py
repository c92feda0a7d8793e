"""High-resolution encoder: any timm backbone with stages.

Shapes: N pictures, S side of the canvas in pixels, C channels of a stage.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mg_llava.models.encoders.base import StageEncoder
from mg_llava.models.weights.loading import (
    create_timm_model,
    load_feature_weights,
    read_weights,
)
from mg_llava.registry import MODELS


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
