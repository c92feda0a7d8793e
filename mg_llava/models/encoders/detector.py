"""Detectors of the DETR family from transformers, as encoders: states, boxes and scores of their queries.

Shapes: N canvases, s side of the view in pixels, K objects that are kept, C_o channels of a query's state.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mg_llava.compat import no_init_weights, own_names, whole_parameters
from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.clip import read_processor
from mg_llava.models.encoders.phrases import (
    Phrases,
    read_phrases,
    score_classes,
    take_planned_masks,
    write_phrases,
)
from mg_llava.models.interfaces import Detected, Seen, Spec, class_scores
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS

_WANTED = "a Hugging Face folder of a detector (config.json and weights)"
_NO_OBJECT = {
    "detr": True,
    "conditional_detr": False,
    "deformable_detr": False,
    "rt_detr": False,
    "grounding-dino": False,
}
"""Kinds of detectors, and whether their last class is "no object"."""
_OPEN = "grounding-dino"
"""A kind that is told the names of its classes."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIZE = 640


@MODELS.register_module()
class TransformerDetector(VisionEncoder):
    """A DETR, Conditional DETR, Deformable DETR, RT-DETR or Grounding DINO: the K objects that it is surest of.

    It sees the whole canvas, so that its boxes are shares of the canvas. Grounding DINO looks for the same ``classes``
    on every canvas.

    Args:
        path: Folder or hub name.
        objects: K; all queries where there are fewer.
        image_size: s; None for the size of its picture processor.
        classes: Names of the classes that Grounding DINO is asked for; the others know their own.
        dtype: Dtype of weights and computation; see :class:`VisionEncoder`.

    Raises:
        FileNotFoundError: The folder lacks config or weights.
        ValueError: It holds a model of another kind, or classes are given to it, or not, against its kind.
    """

    wanted = _WANTED

    def __init__(
        self,
        path: str,
        objects: int = 100,
        image_size: int | None = None,
        classes: Sequence[str] | None = None,
        dtype: str = "auto",
    ) -> None:
        config = {"path": path, "objects": objects, "image_size": image_size, "classes": classes}
        with no_init_weights():  # all of them are read
            super().__init__(config, dtype)

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
        names, own = _classes_of(path, architecture, config.get("classes"))
        spec = Spec(
            type=cls.__name__,
            image_size=config.get("image_size") or size,
            mean=mean,
            std=std,
            objects=min(objects, architecture.num_queries),
            object_channels=architecture.d_model,
            classes=names,
            has_rest=_NO_OBJECT[kind],
            architecture={"detector": architecture.to_dict(), **own},
        )
        return replace(spec, source=found.source)

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`."""
        stored = map_folder(find_folder(config["path"]))
        with torch.device("meta"):
            own = _network(cls.describe(config))
        own.tie_weights()
        stored = {name: stored[there] for there, name in own_names(own, stored).items()}
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
        phrases = spec.architecture.get("phrases")
        self._phrases = None if phrases is None else Phrases(*phrases)
        if self._phrases is not None:
            take_planned_masks()

    def see(self, pixels: Tensor) -> Seen:
        """See :meth:`VisionEncoder.see`."""
        own = {} if self._phrases is None else read_phrases(self._phrases, len(pixels), pixels.device)
        given = self.network(pixel_values=pixels, **own)
        logits = given.logits.float()
        if self._phrases is not None:
            logits = score_classes(self._phrases, logits)
        scores, order = class_scores(logits, self.spec.has_rest).amax(-1).topk(self.spec.objects)  # (N, K), best first
        states, boxes, logits = (
            values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))
            for values in (given.last_hidden_state, given.pred_boxes.float(), logits)
        )
        return Seen(detected=Detected(states, boxes, scores, logits))


def _classes_of(path: str, config: Any, names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of a detector's classes, and the text that asks for them where it is open."""
    if config.model_type != _OPEN:
        if names is not None:
            raise ValueError(f"{path} knows its own classes; leave classes={list(names)} out")
        return tuple(str(config.id2label[number]) for number in range(config.num_labels)), {}
    limit = min(config.max_text_len, config.text_config.max_position_embeddings)
    phrases = write_phrases(path, names or (), limit)
    return tuple(names or ()), {"phrases": list(phrases)}


def _network(spec: Spec) -> Any:
    from transformers import AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection

    config = _config(spec.architecture["detector"])
    family = AutoModelForZeroShotObjectDetection if config.model_type == _OPEN else AutoModelForObjectDetection
    with whole_parameters(), _NumbersOnTheHost():
        return family.from_config(config)


class _NumbersOnTheHost(TorchFunctionMode):
    """Keeps ``linspace`` off the meta device, because Swin reads its rates of stochastic depth from one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **{**own, **(kwargs or {})})


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
