"""CLIP and SigLIP vision models of Hugging Face: tokens of a low-resolution view.

Shapes: N pictures, s side of the view in pixels, C channels, h x w grid of tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mg_llava.compat import no_init_weights, vision_network
from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.base import VisionEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.interfaces import Seen, Spec
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.loading import require_folder
from mg_llava.models.weights.stored import TensorMap
from mg_llava.registry import MODELS

_WANTED = "a Hugging Face CLIP or SigLIP folder (config.json and weights)"
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@MODELS.register_module()
class CLIPEncoder(VisionEncoder):
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

    wanted = _WANTED

    def __init__(self, path: str, layer: int = -2, dtype: str = "auto") -> None:
        with no_init_weights():  # all of them are read
            super().__init__({"path": path, "layer": layer}, dtype)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """See :meth:`Encoder.describe`."""
        path, layer = str(config["path"]), config.get("layer", -2)
        if Path(path).is_dir():
            require_folder(path, "config.json", _WANTED)
        found = find_architecture(path, "transformers")
        vision = _vision_config(found.config, path)
        family = vision.model_type.removesuffix("_vision_model")
        mean, std = read_normalization(path, family)
        spec = cls.spec_of(vision, layer, mean, std, path)
        return replace(spec, source=found.source)

    @classmethod
    def spec_of(
        cls, vision: Any, layer: int, mean: Sequence[float], std: Sequence[float], source: str = "the vision config"
    ) -> Spec:
        """The spec of a ``CLIPVisionConfig`` or ``SiglipVisionConfig``."""
        depth = vision.num_hidden_layers
        if not 0 <= (layer if layer >= 0 else depth + 1 + layer) <= depth:
            raise ValueError(f"layer={layer} is out of range for {source}, which has {depth} layers")
        return Spec(
            type=cls.__name__,
            image_size=vision.image_size,
            mean=tuple(mean),
            std=tuple(std),
            tokens=(vision.image_size // vision.patch_size) ** 2,
            channels=vision.hidden_size,
            architecture={"layer": layer, "vision": vision.to_dict()},
        )

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """See :meth:`Encoder.map_weights`."""
        spec, folder = cls.describe(config), find_folder(config["path"])
        layers = _kept_layers(spec)
        stored = map_folder(folder)
        # a vision model alone is stored without it by transformers 5
        prefix = "vision_model." if any(key.startswith("vision_model.") for key in stored) else ""
        tensors: TensorMap = {}
        for key, tensor in stored.items():
            name = key.removeprefix(prefix)
            match = _LAYER.match(name)
            if not key.startswith(prefix) or (match and int(match[1]) >= layers) or name.endswith("position_ids"):
                continue
            if match or name.startswith("embeddings."):
                tensors[name] = tensor
            elif name.startswith("pre_layrnorm."):
                tensors[name.replace("pre_layrnorm.", "pre_norm.")] = tensor
        return tensors

    def build(self, spec: Spec) -> None:
        """See :meth:`VisionEncoder.build`."""
        from transformers import AutoModel

        config = _vision_config(dict(spec.architecture["vision"]), "the vision config")
        # said outright: transformers 4.48 falls back to eager attention for folders that it has saved itself
        attention = spec.architecture.get("attention", "sdpa")
        vision = vision_network(AutoModel.from_config(config, attn_implementation=attention))
        vision.encoder.layers = vision.encoder.layers[: _kept_layers(spec)]
        self.embeddings = vision.embeddings
        self.pre_norm = getattr(vision, "pre_layrnorm", nn.Identity())
        self.encoder = vision.encoder
        self.class_tokens = 1 if hasattr(vision.embeddings, "class_embedding") else 0

    def see(self, pixels: Tensor) -> Seen:
        """Tokens ``(N, h * w, C)``, row-major."""
        hidden = self.pre_norm(self.embeddings(pixels))
        hidden = self.encoder(inputs_embeds=hidden).last_hidden_state
        return Seen(hidden[:, self.class_tokens :])


def _kept_layers(spec: Spec) -> int:
    layer, depth = spec.architecture["layer"], spec.architecture["vision"]["num_hidden_layers"]
    return layer if layer >= 0 else depth + 1 + layer


def _vision_config(config: Mapping[str, Any], source: str) -> Any:
    """Transformers' config of a vision model, or of the vision part of a whole model."""
    from transformers import CLIPConfig, CLIPVisionConfig, SiglipConfig, SiglipVisionConfig

    wholes: dict[str, Any] = {"clip": CLIPConfig, "siglip": SiglipConfig}
    parts: dict[str, Any] = {"clip_vision_model": CLIPVisionConfig, "siglip_vision_model": SiglipVisionConfig}
    kind = config.get("model_type")
    if kind in wholes:
        return wholes[kind](**config).vision_config
    if kind not in parts:
        raise ValueError(f"{source} holds a {kind!r} model; the low-resolution encoder takes clip, siglip")
    return parts[kind](**config)


def read_processor(path: str) -> Mapping[str, Any]:
    """Settings of a Hugging Face model's picture processor; none where it has none."""
    from transformers.image_processing_utils import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(path, local_files_only=True)[0]
    except OSError:
        return {}


def read_normalization(path: str, family: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of a Hugging Face model's processor; those of its family where it says none."""
    defaults = (CLIP_MEAN, CLIP_STD) if family == "clip" else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config = read_processor(path)
    return tuple(config.get("image_mean", defaults[0])), tuple(config.get("image_std", defaults[1]))
