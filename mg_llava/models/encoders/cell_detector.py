"""A detector that looks for one object in each cell of a frozen ConvNeXt's last map; it trains in seconds.

Shapes: N canvases, g x g cells of the last map, C channels of the map, w width of the head, K objects that are kept.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.interfaces import Detected, Seen, Spec, class_scores
from mg_llava.models.weights.folders import map_folder
from mg_llava.models.weights.loading import require_folder
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS
from mg_llava.work.json_text import load_object

_WANTED = "a folder of a cell detector (config.json and model.safetensors)"


class CellHead(nn.Module):
    """A hidden layer of each cell, which is the state of its object; logits, and a box within the cell.

    Args:
        channels: C.
        width: w.
        logits: Of the classes, and of no object.
    """

    def __init__(self, channels: int, width: int, logits: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width)
        self.out = nn.Linear(width, logits + 4)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(N, C, g, g)`` to states ``(N, g * g, w)``, logits, and boxes, cxcywh shares of the canvas.

        Centers lie within the cell, sides are at most twice the cell's.
        """
        side = cells.shape[-1]
        states = nn.functional.gelu(self.hidden(cells.flatten(2).transpose(1, 2)))
        output = self.out(states).float()
        shares = output[..., -4:].sigmoid()
        places = torch.arange(side * side, device=cells.device)
        corner = torch.stack([places % side, places // side], dim=-1)
        boxes = torch.cat([shares[..., :2] + corner, 2 * shares[..., 2:]], dim=-1) / side
        return states, output[..., :-4], boxes


@MODELS.register_module()
class CellDetector(OpenCLIPConvNeXtEncoder):
    """A ConvNeXt with a head for each cell of its last map.

    Args:
        path: Folder with ``config.json`` (``backbone``, a folder relative to it; ``classes``; ``width``) and the
            weights of the head.
        image_size: Side of its view in pixels.
        objects: K; all cells where there are fewer.
        dtype: Dtype of weights and computation; see :class:`VisionEncoder`.

    Raises:
        FileNotFoundError: A file of either folder is absent.
    """

    def __init__(self, path: str, image_size: int, objects: int = 20, dtype: str = "auto") -> None:
        VisionEncoder.__init__(self, {"path": path, "image_size": image_size, "objects": objects}, dtype)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        about = _read(config["path"])
        spec = super().describe({**config, "path": _backbone(config["path"], about)})
        return replace(
            spec,
            stage_channels=(),
            stage_strides=(),
            objects=min(config.get("objects", 20), (spec.image_size // spec.stage_strides[-1]) ** 2),
            object_channels=about["width"],
            classes=tuple(about["classes"]),
            has_rest=True,
            architecture={**spec.architecture, "channels": spec.stage_channels[-1]},
        )

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`."""
        trunk = super().map_weights({**config, "path": _backbone(config["path"], _read(config["path"]))})
        own = map_folder(Path(config["path"]))
        return {**trunk, **{f"head.{name}": tensor for name, tensor in own.items()}}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        super().build(spec)
        self.head = CellHead(spec.architecture["channels"], spec.object_channels, len(spec.classes) + 1)

    def see(self, pixels: Tensor) -> Seen:
        """See :meth:`VisionEncoder.see`."""
        states, logits, boxes = self.head(super().see(pixels).maps[-1])
        scores, order = class_scores(logits, True).amax(-1).topk(self.spec.objects)
        states, logits, boxes = (
            values.gather(1, order[..., None].expand(-1, -1, values.shape[-1])) for values in (states, logits, boxes)
        )
        return Seen(detected=Detected(states, boxes, scores, logits))


def _read(path: str) -> dict[str, Any]:
    require_folder(path, "config.json", _WANTED, False)
    return load_object(Path(path) / "config.json")


def _backbone(path: str, about: Mapping[str, Any]) -> str:
    return str(Path(path) / about["backbone"])
