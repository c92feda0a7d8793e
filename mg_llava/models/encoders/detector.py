"""Detectors of the DETR family from transformers, as encoders: states, boxes and scores of their queries.

Shapes: N canvases, s side of the view in pixels, K objects that are kept, C_o channels of a query's state.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.clip import read_processor
from mg_llava.models.interfaces import Detected, Seen, Spec
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.loading import require_folder
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS

_WANTED = "a Hugging Face folder of a detector (config.json and weights)"
_NO_OBJECT = {"detr": True, "conditional_detr": False, "deformable_detr": False, "rt_detr": False}
"""Kinds of detectors, and whether their last class is "no object": then scores are of a softmax, else of sigmoids."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIZE = 640


@MODELS.register_module()
class TransformerDetector(VisionEncoder):
    """A DETR, Conditional DETR, Deformable DETR or RT-DETR, which gives the K objects that it is surest of.

    It sees the whole canvas, so that its boxes are shares of the canvas.

    Args:
        path: Folder or hub name.
        objects: K; all queries where there are fewer.
        image_size: s; None for the size of its picture processor.
        dtype: Dtype of weights and computation; see :class:`VisionEncoder`.

    Raises:
        FileNotFoundError: The folder lacks config or weights.
        ValueError: It holds a model of another kind.
    """

    def __init__(self, path: str, objects: int = 100, image_size: int | None = None, dtype: str = "auto") -> None:
        from transformers.modeling_utils import no_init_weights

        with no_init_weights():  # all of them are read
            super().__init__({"path": path, "objects": objects, "image_size": image_size}, dtype)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        path, objects = str(config["path"]), config.get("objects", 100)
        found = find_architecture(path, "transformers")
        kind = found.config.get("model_type")
        if kind not in _NO_OBJECT:
            raise ValueError(f"{path} holds a {kind!r} model; a detector is one of {', '.join(_NO_OBJECT)}")
        if objects < 1:
            raise ValueError(f"objects is {objects}; a detector keeps at least 1")
        size, mean, std = _view_of(path)
        architecture = _config({**found.config, "use_pretrained_backbone": False, "auxiliary_loss": False})
        spec = Spec(
            type=cls.__name__,
            image_size=config.get("image_size") or size,
            mean=mean,
            std=std,
            objects=min(objects, architecture.num_queries),
            object_channels=architecture.d_model,
            architecture={"detector": architecture.to_dict()},
        )
        return replace(spec, source=found.source)

    @classmethod
    def fetch(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`VisionEncoder.fetch`."""
        require_folder(config["path"], "config.json", _WANTED)
        return {**config, "path": str(find_folder(config["path"]))}

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`."""
        stored = map_folder(find_folder(config["path"]))
        with torch.device("meta"):
            own = _network(cls.describe(config))
        shared: dict[int, list[str]] = {}  # heads that a decoder holds too are stored under one of their names
        for name, tensor in own.state_dict(keep_vars=True).items():
            shared.setdefault(id(tensor), []).append(name)
        for names in shared.values():
            there = next((stored[name] for name in names if name in stored), None)
            stored |= {name: there for name in names if there is not None}
        return {f"network.{name}": tensor for name, tensor in stored.items()}

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        self.network = _network(spec)

    def see(self, pixels: Tensor) -> Seen:
        """See :meth:`VisionEncoder.see`."""
        given = self.network(pixel_values=pixels)
        has_rest = _NO_OBJECT[self.network.config.model_type]
        logits = given.logits.float()
        known = logits.softmax(-1)[..., :-1] if has_rest else logits.sigmoid()
        scores, order = known.amax(-1).topk(self.spec.objects)  # (N, K), best first
        states, boxes, logits = (
            values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))
            for values in (given.last_hidden_state, given.pred_boxes.float(), logits)
        )
        return Seen(detected=Detected(states, boxes, scores, logits))


def _network(spec: Spec) -> Any:
    from transformers import AutoModelForObjectDetection

    return AutoModelForObjectDetection.from_config(_config(spec.architecture["detector"]))


def _config(values: Mapping[str, Any]) -> Any:
    """Transformers' config of a detector; nothing of it is downloaded."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**copy.deepcopy(dict(values)))  # RT-DETR takes a key out of what it is given


def _view_of(path: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and std of a detector's picture processor; ImageNet's where it has none."""
    found = read_processor(path)
    size = found.get("size", _SIZE)
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge") or _SIZE
    return int(side), tuple(found.get("image_mean", _IMAGENET[0])), tuple(found.get("image_std", _IMAGENET[1]))
