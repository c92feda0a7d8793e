"""The model in vLLM: what a picture gives is computed by our system, the language model is vLLM's own.

Shapes: N pictures, S side of the canvas in pixels, n_i boxes of picture i, P tokens of a picture, D hidden size.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.inputs import checked_boxes
from mg_llava.hf.keys import PREFIX
from mg_llava.hf.parts import build_system
from mg_llava.hf.vllm_processing import VLLMDummyInputs, VLLMInfo, VLLMProcessor
from mg_llava.tokens import IMAGE_PLACEHOLDER

_LLM = f"{PREFIX}llm."


@MULTIMODAL_REGISTRY.register_processor(VLLMProcessor, info=VLLMInfo, dummy_inputs=VLLMDummyInputs)
class MGLLaVAForVLLM(nn.Module, SupportsMultiModal):
    """As vLLM builds models.

    Raises:
        ValueError: The system needs more of its LLM than embeddings.
    """

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """The place of a picture in a text.

        Raises:
            ValueError: There are pictures alone.
        """
        if modality != "image":
            raise ValueError(f"{modality} is not supported; pictures are")
        return IMAGE_PLACEHOLDER

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, "image"):
            self.sight = _sight(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @torch.no_grad()
    def embed_multimodal(self, **given: Any) -> list[Tensor]:
        """The tokens of each picture, ``(P + n_i, D)``.

        Args:
            **given: ``pixel_values`` (N, 3, S, S) uint8 and ``boxes``, N times (n_i, 4), as the processor gives them.
        """
        pixels: Any = given.get("pixel_values")
        if pixels is None:
            return []
        canvas = pixels if isinstance(pixels, Tensor) else torch.stack(list(pixels))
        boxes: Sequence[Tensor] = [item.to(canvas.device) for item in checked_boxes(given["boxes"], len(canvas))]
        seeing = self.sight.see({"canvas": canvas, "boxes": boxes})
        return [torch.cat([segment.tokens for segment in segments]) for segments in seeing]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Hidden states of the language model."""
        given = None if intermediate_tensors is not None else inputs_embeds
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=given)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of the language model."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the tensors of a folder; gives the names of those that were filled.

        Raises:
            RuntimeError: The folder lacks some, or has others.
        """
        own: dict[str, Tensor] = {}

        def of_llm() -> Iterable[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith(_LLM):
                    yield name.removeprefix(_LLM), tensor
                else:
                    own[name.removeprefix(PREFIX)] = tensor

        filled: Any = self.language_model.load_weights(of_llm())  # type: ignore[operator]
        self.sight.load_state_dict(own)
        for part, module in self.sight.named_parts():
            if part.role == "encoder":
                module.settle()
        return {f"language_model.{name}" for name in filled} | {f"sight.{name}" for name in own}


def _sight(config: MGLLaVAConfig) -> Any:
    """The system without its LLM."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config)
    system = build_system(config, llm)
    if system.adapter is not None or system.reads_question:
        kind = type(system).__name__
        raise ValueError(f"{kind} reaches into the LLM's layers or reads questions, which vLLM cannot give it")
    system.llm = None
    system._load_state_dict_post_hooks.clear()  # in a folder there is everything: what is missing is said
    return system.eval().requires_grad_(False)
