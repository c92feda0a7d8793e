"""One token per box from a sum over the stages, each brought to one width by a linear layer of its own.

Shapes: n boxes, C_s channels of stage s, C_l channels of low-resolution tokens, D hidden size of the LLM.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mg_llava.models.objects.roi_align import RoIAlignBoxProjector
from mg_llava.models.projectors import build_mlp
from mg_llava.registry import MODELS


@MODELS.register_module()
class StageSumBoxProjector(RoIAlignBoxProjector):
    """Box features of :class:`RoIAlignBoxProjector`, summed over stages (``use_multi_level`` of the reference).

    The reference applies the linear layers to the maps and pools afterwards. Both are linear, so that the order does
    not matter but for boxes that reach out of the canvas, where it would pool less than the whole bias.

    Args:
        stage_channels: Channels of the encoder's stages, in order.
        out_channels: D; None pools boxes and projects nothing.
        low_channels: C_l, the width in which stages are summed; only a projection needs it.
        depth: Linear layers of the MLP.
        bins: Bins of RoIAlign along each axis.
        stages: Indices of the stages to read; ``None`` reads all.

    Raises:
        ValueError: As of :class:`RoIAlignBoxProjector`; or ``out_channels`` comes without ``low_channels``.
    """

    def __init__(
        self,
        stage_channels: Sequence[int],
        out_channels: int | None,
        low_channels: int | None = None,
        depth: int = 2,
        bins: int = 56,
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__(stage_channels, None, bins=bins, stages=stages)
        self.widths = [stage_channels[index] for index in self.stages]
        if out_channels is not None:
            if low_channels is None:
                raise ValueError("stages are summed in the width of low-resolution tokens; give low_channels")
            self.out_channels, self.low_channels = out_channels, low_channels
            self.multi_level_linear = nn.ModuleList(nn.Linear(width, low_channels) for width in self.widths)
            self.model = build_mlp(low_channels, out_channels, depth)

    def project(self, pooled: Tensor) -> Tensor:
        """See :meth:`ObjectReader.project`."""
        stages = pooled.to(self.multi_level_linear[0].weight.dtype).split(self.widths, dim=1)  # (n, C_s) each
        own = [linear(stage) for linear, stage in zip(self.multi_level_linear, stages, strict=True)]
        return super().project(sum(own[1:], own[0]))
