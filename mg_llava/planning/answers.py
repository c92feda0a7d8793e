"""What a model takes to answer with: parameters, memory of its weights, and of what the LLM keeps of each token."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mg_llava.compat import dtype_name
from mg_llava.models.recompute import layer_products
from mg_llava.planning.gpus import GPU
from mg_llava.planning.memory import CONTEXT, FRAGMENTATION, GIB, encoder_bytes
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
        together: Conversations of that length that fit at a time, all of them read at once.
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

    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; give a Hugging Face folder of ours, or the config of a training"
        )
    config = MGLLaVAConfig.from_pretrained(folder)
    dtype = getattr(config, dtype_name()) or torch.float32
    with torch.device("meta"):
        model = MGLLaVAForConditionalGeneration._from_config(config, **{dtype_name(): dtype}).model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    context = config.text_config.max_position_embeddings
    room = (gpu.memory - CONTEXT) * (1 - FRAGMENTATION) - weights
    return AnsweringPlan(
        model=str(folder),
        gpu=gpu.name,
        dtype=str(dtype).removeprefix("torch."),
        parameters={part.key: sum(p.numel() for p in module.parameters()) for part, module in model.named_parts()},
        weights=weights,
        token=cache_bytes(model.llm),
        picture=model.tokens_of(1, 0),
        context=context,
        together=max(0, int(room // answering_bytes(model, context))),
    )


def answering_bytes(system: Any, length: int) -> int:
    """Most bytes that a picture and a prompt of a length take until its answer begins, beside the weights."""
    return max(encoder_bytes(system), length * (cache_bytes(system.llm) + reading_bytes(system.llm)))


def cache_bytes(llm: Any) -> int:
    """Bytes that an LLM keeps of each token that it has read."""
    config = llm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * llm.dtype.itemsize


def reading_bytes(llm: Any) -> int:
    """Bytes that a layer takes of each token while prompts are read, beside the cache: its input, and its MLP."""
    width = llm.get_input_embeddings().embedding_dim
    widest = max(outer for _, outer in layer_products(llm))
    return (3 * width + 3 * widest) * llm.dtype.itemsize
