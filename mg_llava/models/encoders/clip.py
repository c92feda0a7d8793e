"""Low-resolution encoder: CLIP or SigLIP vision models of Hugging Face.

Shapes: N pictures, s side of the view in pixels, C channels, h x w grid of tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.models.encoders.base import FrozenEncoder
from mg_llava.models.encoders.views import CLIP_MEAN, CLIP_STD
from mg_llava.models.weights.loading import (
    load_hugging_face,
    require_folder,
)
from mg_llava.registry import MODELS


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
