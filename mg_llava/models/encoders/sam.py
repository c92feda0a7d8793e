"""The image encoder of SAM (Segment Anything) of Hugging Face: tokens of the canvas, pooled.

Shapes: N canvases, s side of the view in pixels, C channels, h x h cells of the encoder's map.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.clip import read_processor
from mg_llava.models.interfaces import Seen, Spec
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS

_WANTED = "a Hugging Face folder of SAM (config.json and weights)"
_PREFIX = "vision_encoder."
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@MODELS.register_module()
class SAMEncoder(VisionEncoder):
    """Tokens of SAM's image encoder, means over squares of cells: 64 x 64 cells to 16 x 16 tokens by default.

    Args:
        path: Folder or hub name.
        pool: Side of a square in cells.
        dtype: Dtype of weights and computation; see :class:`VisionEncoder`.

    Raises:
        FileNotFoundError: The folder lacks config or weights.
        ValueError: It holds a model of another kind, or ``pool`` does not divide its map.
    """

    wanted = _WANTED

    def __init__(self, path: str, pool: int = 4, dtype: str = "auto") -> None:
        super().__init__({"path": path, "pool": pool}, dtype)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        path, pool = str(config["path"]), config.get("pool", 4)
        found = find_architecture(path, "transformers")
        if found.config.get("model_type") != "sam":
            raise ValueError(f"{path} holds a {found.config.get('model_type')!r} model; expected {_WANTED}")
        vision = _vision(found.config.get("vision_config") or {})
        side = vision.image_size // vision.patch_size
        if pool < 1 or side % pool:
            raise ValueError(f"pool is {pool}, which does not divide the {side} cells of a side of {path}'s map")
        processor = read_processor(path)
        return Spec(
            type=cls.__name__,
            image_size=vision.image_size,
            mean=tuple(processor.get("image_mean", _IMAGENET[0])),
            std=tuple(processor.get("image_std", _IMAGENET[1])),
            tokens=(side // pool) ** 2,
            channels=vision.output_channels,
            architecture={"vision": vision.to_dict(), "pool": pool},
            source=found.source,
        )

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`; prompt encoder and mask decoder are left out."""
        stored = map_folder(find_folder(config["path"]))
        own = {name: tensor for name, tensor in stored.items() if name.startswith(_PREFIX)}
        return {f"network.{name.removeprefix(_PREFIX)}": tensor for name, tensor in own.items()}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        self.network = SamVisionEncoder(_vision(spec.architecture["vision"]))

    def see(self, pixels: Tensor) -> Seen:
        """Tokens ``(N, P, C)``, row-major."""
        cells = self.network(pixels).last_hidden_state  # (N, C, h, h)
        return Seen(F.avg_pool2d(cells, self.spec.architecture["pool"]).flatten(2).transpose(1, 2))


def _vision(values: Mapping[str, Any]) -> Any:
    from transformers import SamVisionConfig

    return SamVisionConfig(**values)
