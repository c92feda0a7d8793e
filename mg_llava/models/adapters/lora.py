"""LoRA adapters through PEFT, in combinations that training, checkpoints, predictor and converter read alike."""

import copy
from typing import Any

import torch
from torch import nn

LORA_DEFAULTS: dict[str, Any] = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}
"""Arguments of ``peft.LoraConfig`` where a config says nothing else."""

WRAPPED = "base_model.model."
"""Prefix that PEFT puts before the names of an LLM's weights."""


def add_lora(llm: Any, settings: dict[str, Any], quantized: bool = False) -> nn.Module:
    """Freeze an LLM and put adapters on it.

    Where output head and word embeddings are one matrix, ``modules_to_save`` with either of them trains that matrix,
    and it stays one.

    Args:
        llm: A causal LM.
        settings: Arguments of ``peft.LoraConfig`` that differ from ``LORA_DEFAULTS``.
        quantized: Whether its weights are in 4 bits.

    Raises:
        ValueError: The settings would give weights that cannot be saved, merged or exported as they were trained.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    settings = copy.deepcopy(LORA_DEFAULTS | settings)  # PEFT writes into the lists that it is given
    if settings.get("trainable_token_indices"):
        raise ValueError(
            "lora has trainable_token_indices, which cannot be merged into an LLM's folder here; train the whole "
            'embeddings with modules_to_save=["embed_tokens"]'
        )
    tied = is_tied(llm)
    ends = {id(llm.get_input_embeddings()), id(llm.get_output_embeddings())}
    names = [name for name, module in llm.named_modules() if id(module) in ends] if tied else []
    if any(f".{name}".endswith(f".{item}") for name in names for item in settings.get("modules_to_save") or ()):
        settings["ensure_weight_tying"] = True
    if quantized:
        # checkpointing is switched on by the caller, non-reentrant
        llm = prepare_model_for_kbit_training(llm, use_gradient_checkpointing=False)
    # other parts start from the same weights of a seed with and without adapters
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        adapted: Any = get_peft_model(llm, LoraConfig(task_type="CAUSAL_LM", **settings))
    if tied and not is_tied(adapted):
        raise ValueError(
            f"the output head of {type(llm).__name__} is its word embeddings (tie_word_embeddings), and these lora "
            "settings change one of them without the other: target_modules="
            f"{settings['target_modules']!r}, modules_to_save={settings.get('modules_to_save')!r}. Train the shared "
            f'matrix with modules_to_save=["{names[-1]}"] alone, or leave embeddings and head out'
        )
    _show_sizes(adapted.get_input_embeddings())
    return adapted


def is_tied(llm: Any) -> bool:
    """Whether output head and word embeddings are one matrix, in what is trained of them too."""
    head, embeddings = llm.get_output_embeddings(), llm.get_input_embeddings()
    return head is not None and _weights(head) == _weights(embeddings)


def _weights(module: nn.Module) -> set[int]:
    """The parameters of an output head or of word embeddings; a bias belongs to the head alone."""
    return {id(parameter) for name, parameter in module.named_parameters() if name.rsplit(".", 1)[-1] != "bias"}


def _show_sizes(embeddings: Any) -> None:
    """Give word embeddings with adapters the sizes of those within, which PEFT hides."""
    if hasattr(embeddings, "base_layer"):
        embeddings.embedding_dim = embeddings.base_layer.embedding_dim
        embeddings.num_embeddings = embeddings.base_layer.num_embeddings
