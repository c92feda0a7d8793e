"""XTuner's own LLaVA with random weights, to measure beside ours: one view, no boxes."""

from typing import Any

import torch
from torch import Tensor

from mg_llava.models.adapters.lora import LORA_DEFAULTS
from mg_llava.models.architectures import find_architecture
from mg_llava.models.encoders.views import normalize, resample

_READ = ("input_ids", "attention_mask", "labels")


def build_stock(llm: Any, vision: str, canvas: int, dtype: torch.dtype, checkpointing: Any, llm_trains: str) -> Any:
    """``xtuner.model.LLaVAModel``.

    Args:
        llm: Its LLM.
        vision: Folder or name of its CLIP.
        canvas: Side of the canvas in pixels, of which its view is made.
        dtype: Of its CLIP.
        checkpointing: Whether it checkpoints; it knows no choice of what is kept.
        llm_trains: ``"nothing"`` of the LLM trains, ``"adapters"`` of it, or ``"all"``.
    """
    from peft import LoraConfig
    from transformers import AutoConfig, CLIPVisionModel
    from xtuner.model import LLaVAModel

    found = AutoConfig.for_model(**find_architecture(vision, "transformers").config)
    encoder = CLIPVisionModel(getattr(found, "vision_config", found)).to(dtype)
    model = LLaVAModel(
        llm,
        encoder,
        freeze_llm=llm_trains != "all",
        freeze_visual_encoder=True,
        llm_lora=LoraConfig(task_type="CAUSAL_LM", **LORA_DEFAULTS) if llm_trains == "adapters" else None,
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
