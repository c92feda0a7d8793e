"""XTuner's own LLaVA with random weights, to measure beside ours: one view, no boxes."""

from typing import Any

import torch
from torch import Tensor

from mg_llava.models.adapters.lora import LORA_DEFAULTS
from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.views import normalize, resample

_READ = ("input_ids", "attention_mask", "labels")


def build_stock(
    llm: Any, vision: str, canvas: int, dtype: torch.dtype, checkpointing: Any, stage: int, lora: bool
) -> Any:
    """``xtuner.model.LLaVAModel``.

    Args:
        llm: Its LLM.
        vision: Folder or name of its CLIP.
        canvas: Side of the canvas in pixels, of which its view is made.
        dtype: Of its CLIP.
        checkpointing: Whether it checkpoints; it knows no choice of what is kept.
        stage: 1 trains the projector alone.
        lora: Whether stage 2 trains adapters.
    """
    from peft import LoraConfig
    from transformers import AutoConfig, CLIPVisionModel
    from xtuner.model import LLaVAModel

    found = AutoConfig.for_model(**find_architecture(vision, "transformers").config)
    encoder = CLIPVisionModel(getattr(found, "vision_config", found)).to(dtype)
    model = LLaVAModel(
        llm,
        encoder,
        freeze_llm=stage == 1 or lora,
        freeze_visual_encoder=True,
        llm_lora=LoraConfig(task_type="CAUSAL_LM", **LORA_DEFAULTS) if lora else None,
        use_activation_checkpointing=bool(checkpointing),
    )
    model.canvas_size = canvas
    return model


def stock_batch(data: dict[str, Any], size: int) -> dict[str, Tensor]:
    """A batch of :func:`mg_llava.data.collate` as XTuner sends it, with ``pixel_values`` (N, 3, s, s) float32.

    Args:
        data: The batch.
        size: Side s of its view in pixels.
    """
    return {name: data[name] for name in _READ} | {"pixel_values": resample(normalize(data["canvas"]), size)}
