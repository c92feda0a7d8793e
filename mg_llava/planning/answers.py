"""What a model takes to answer with: parameters, memory of its weights, and of what the LLM keeps of each token."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mg_llava.planning.gpus import GPU
from mg_llava.planning.memory import CONTEXT, FRAGMENTATION, GIB
from mg_llava.planning.plan import IMPOSSIBLE, OK


@dataclass(frozen=True)
class AnsweringPlan:
    """A model on one GPU.

    Attributes:
        model: Folder of the model.
        gpu: Name of the GPU.
        dtype: Of the weights, as they are stored.
        parameters: By part.
        weights: Bytes of all weights.
        token: Bytes that the LLM keeps of each token that it has read.
        picture: Tokens of a picture without boxes; each box is one more.
        context: Tokens that the LLM has room for.
        together: Conversations of that length that fit at a time.
    """

    model: str
    gpu: str
    dtype: str
    parameters: dict[str, int]
    weights: int
    token: int
    picture: int
    context: int
    together: int

    @property
    def status(self) -> int:
        """Exit status: ``OK`` or ``IMPOSSIBLE``."""
        return OK if self.together else IMPOSSIBLE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "status": self.status}

    def describe(self) -> str:
        """The plan for people."""
        parts = [f"  {name:<18} {count:>16,}" for name, count in self.parameters.items()]
        fits = f"{self.together} conversations of {self.context} tokens fit at a time"
        lines = [
            f"{self.model} answering on one {self.gpu}",
            "\nparameters",
            *parts,
            f"\nweights in {self.dtype}: {self.weights / GIB:.3f} GiB",
            f"a token that was read: {self.token / 2**10:.1f} KiB",
            f"a picture: {self.picture} tokens, and one for each box",
            f"\n{fits}." if self.together else "\nNot one conversation fits.",
            "To plan a training, give its config.",
        ]
        return "\n".join(lines)


def plan_answers(folder: str | Path, gpu: GPU) -> AnsweringPlan:
    """Plan what a Hugging Face folder of ours takes; no weights are read.

    Raises:
        ValueError: Its config is damaged or of another kind of model.
    """
    from mg_llava.hf import MGLLaVAConfig, MGLLaVAForConditionalGeneration

    config = MGLLaVAConfig.from_pretrained(folder)
    dtype = config.torch_dtype or torch.float32
    with torch.device("meta"):
        model = MGLLaVAForConditionalGeneration._from_config(config, torch_dtype=dtype).model
    text = config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    token = 2 * text.num_hidden_layers * heads * width * dtype.itemsize
    context = text.max_position_embeddings
    room = (gpu.memory - CONTEXT) * (1 - FRAGMENTATION) - weights
    return AnsweringPlan(
        model=str(folder),
        gpu=gpu.name,
        dtype=str(dtype).removeprefix("torch."),
        parameters={part.key: sum(p.numel() for p in module.parameters()) for part, module in model.named_parts()},
        weights=weights,
        token=token,
        picture=model.tokens_of(1, 0),
        context=context,
        together=max(0, int(room // (token * context))),
    )
