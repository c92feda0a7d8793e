"""Builds the LLM: any Hugging Face causal LM, frozen, fully tuned, or with LoRA / QLoRA adapters."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from torch import nn

from mg_llava.compat import dtype_name, take_masks_as_given
from mg_llava.models.adapters.lora import add_lora
from mg_llava.models.architectures import find_architecture
from mg_llava.models.losses.language import decoder_of
from mg_llava.models.recompute import Checkpointing, enable_checkpointing
from mg_llava.models.weights.loading import load_hugging_face, on_meta, require_folder, resolve_dtype
from mg_llava.registry import MODELS

Tuning = Literal["frozen", "full", "lora", "qlora"]
TUNINGS = ("frozen", "full", "lora", "qlora")


def attention_candidates() -> list[str]:
    """Attention backends to try on this machine, fastest first.

    FlashAttention-2 needs CUDA and the ``flash_attn`` package; SDPA comes with torch; eager works always.
    """
    flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return (["flash_attention_2"] if flash else []) + ["sdpa", "eager"]


@MODELS.register_module()
def build_language_model(
    path: str,
    tuning: Tuning = "frozen",
    dtype: str = "auto",
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto",
    freeze_embeddings: bool = False,
    gradient_checkpointing: Checkpointing = True,
    lora: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a causal LM and set what of it is trained.

    Args:
        path: Hugging Face folder or hub name.
        tuning: ``"frozen"``, ``"full"``, ``"lora"`` (adapters on the frozen LLM) or ``"qlora"`` (adapters on the LLM
            in 4-bit NF4; needs bitsandbytes and CUDA).
        dtype: Dtype of the weights; ``"auto"`` is bfloat16 on CUDA, else float32.
        attention: Attention backend; ``"auto"`` takes the best one that is there.
        freeze_embeddings: Keep the word embeddings as they are although the LLM is tuned.
        gradient_checkpointing: Compute activations again in the backward pass: ``True`` all, ``"selective"`` what is
            cheap, ``False`` none; see :mod:`mg_llava.models.recompute`.
        lora: Arguments of ``peft.LoraConfig``; by default rank 64, alpha 16 on all linear layers. See
            :func:`mg_llava.models.adapters.lora.add_lora` for an LLM with tied embeddings.
        trust_remote_code: Run model code that comes with the folder.

    On the meta device its weights are not read, nor quantized.

    Returns:
        The model; parameters that are not to be trained have ``requires_grad=False``.

    Raises:
        FileNotFoundError: If ``path`` is a folder without ``config.json`` or weights.
        ValueError: For an unknown ``tuning``, an impossible combination, a folder with another kind of model, or
            weights that are damaged or incomplete.
        RuntimeError: If ``"qlora"`` is asked for without CUDA.
    """
    if tuning not in TUNINGS:
        raise ValueError(f"unknown tuning {tuning!r}; known: {', '.join(TUNINGS)}")
    if lora is not None and tuning not in ("lora", "qlora"):
        raise ValueError(f"lora settings are given but tuning={tuning!r}; set tuning='lora' or remove them")
    if not on_meta():
        require_folder(path, "config.json", "a Hugging Face folder of a causal LM (config.json, weights, tokenizer)")
    kind = resolve_dtype(dtype)
    kwargs: dict[str, Any] = {dtype_name(): kind, "trust_remote_code": trust_remote_code}
    quantized = tuning == "qlora" and not on_meta()
    if quantized:
        kwargs["quantization_config"] = _nf4(kind)
    llm: Any
    llm, attention_used = _load(path, attention_candidates() if attention == "auto" else [attention], **kwargs)
    llm.config.use_cache = False  # no cache while training; generation asks for it
    enable_checkpointing(llm, gradient_checkpointing)
    take_masks_as_given()
    if tuning in ("lora", "qlora"):
        llm = add_lora(llm, lora or {}, quantized)
    else:
        llm.requires_grad_(tuning == "full")
    if freeze_embeddings:
        _freeze_embeddings(llm, tuning)
    _log(llm, path, tuning, attention_used, kind)
    return llm


def keep_word_embeddings(llm: Any) -> None:
    """Take an LLM's layers and its head away: its word embeddings serve an LLM that another process runs."""
    decoder = decoder_of(llm)
    for name, child in decoder.named_children():
        if isinstance(child, nn.ModuleList):
            setattr(decoder, name, nn.ModuleList())
    llm.set_output_embeddings(nn.Identity())


def _freeze_embeddings(llm: Any, tuning: Tuning) -> None:
    embeddings = llm.get_input_embeddings()
    if tuning != "full" and any(parameter.requires_grad for parameter in embeddings.parameters()):
        raise ValueError(
            "freeze_embeddings=True, but the lora settings train the word embeddings; leave out one of the two"
        )
    embeddings.requires_grad_(False)


def _log(llm: Any, path: str, tuning: str, attention: str, dtype: torch.dtype) -> None:
    trained = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    print_log(
        f"LLM {Path(path).name}: {type(llm).__name__}, tuning {tuning}, {trained:,} parameters trained, attention "
        f"{attention}, {dtype}",
        logger="current",
    )


def _load(path: str, candidates: list[str], **kwargs: Any) -> tuple[nn.Module, str]:
    """Load with the first attention backend that the architecture supports."""
    from transformers import AutoModelForCausalLM

    if on_meta():
        # FlashAttention is not there to be counted, and counts the same
        candidates = list(dict.fromkeys("sdpa" if name.startswith("flash") else name for name in candidates))
    for attention in candidates:
        try:
            if on_meta():
                return _shaped(path, attention, kwargs[dtype_name()]), attention
            return load_hugging_face(AutoModelForCausalLM, path, attn_implementation=attention, **kwargs), attention
        except (ValueError, ImportError) as error:
            if "Unrecognized configuration class" in str(error):
                raise ValueError(f"{path} does not hold a causal LM: {str(error).splitlines()[0]}") from error
            unsupported = re.search(r"attention implementation|Flash ?Attention", str(error))
            if not unsupported or attention == candidates[-1]:
                raise
            print_log(f"attention {attention} is not available for {path}: {error}", logger="current")
    raise AssertionError("there is always a candidate")


def _shaped(path: str, attention: str, dtype: torch.dtype) -> nn.Module:
    """An LLM of the sizes of a folder or of a published one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**find_architecture(path, "transformers").config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, **{dtype_name(): dtype})


def _nf4(compute_dtype: torch.dtype) -> Any:
    if not torch.cuda.is_available():
        raise RuntimeError("tuning='qlora' needs CUDA for bitsandbytes' 4-bit kernels; use tuning='lora' here")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RuntimeError("tuning='qlora' needs bitsandbytes: pip install 'mg_llava[quantization]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
