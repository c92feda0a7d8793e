"""Next-token cross-entropy; logits exist only where there is a label, and only a few of them at a time.

Shapes: B rows, L merged length, D hidden size, V vocabulary. Most positions of a row are visual tokens, box tokens and
questions, which carry no label: their logits (L x V floats, the largest tensor of a step) are never made.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg_llava.batch import plan_layout
from mg_llava.models.interfaces import LLMInputs, Loss, Seeing
from mg_llava.registry import MODELS
from mg_llava.tokens import IGNORE_INDEX

LossKernel = Literal["torch", "liger"]

_LOGIT_RULES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of LLMs that change the logits after the output embedding (Gemma, Cohere, Granite)."""


@MODELS.register_module()
class LanguageLoss(Loss):
    """Mean next-token cross-entropy over all labeled tokens of a batch.

    Args:
        chunk: Positions whose logits exist at once; None makes the logits of all positions.
        kernel: Makes the logits of a chunk and their loss: ``"torch"``, or ``"liger"`` (liger-kernel, CUDA), which
            chooses its own chunks.

    Raises:
        ValueError: Settings make no sense.
    """

    def __init__(self, chunk: int | None = 1024, kernel: LossKernel = "torch") -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be a positive number of positions, or None")
        if kernel not in get_args(LossKernel):
            raise ValueError(f"kernel is {kernel!r}; known: {', '.join(get_args(LossKernel))}")
        if kernel == "liger" and chunk is None:
            raise ValueError("kernel='liger' never makes the logits of all positions; leave chunk as it is")
        self.chunk, self.kernel = chunk, kernel

    def check(self, llm: Any) -> None:
        """See :meth:`Loss.check`."""
        if self.kernel == "liger":
            check_liger(llm)

    def count(self, batch: Mapping[str, Any]) -> int:
        """Labeled tokens; see :meth:`Loss.count`."""
        layout = batch.get("layout")
        if layout is None:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            is_placeholder = ids < 0 if mask is None else (ids < 0) & mask.bool()
            layout = plan_layout(ids, [1] * int(is_placeholder.sum()), mask, batch.get("labels"))
        return len(layout.targets)

    def __call__(self, system: Any, batch: Mapping[str, Any], seeing: Seeing, read: Any) -> dict[str, Tensor]:
        """See :meth:`Loss.__call__`; gives ``loss``."""
        return {"loss": causal_loss(system.llm, read, self.chunk, self.kernel)}


def causal_loss(llm: Any, read: LLMInputs, chunk: int | None, kernel: LossKernel) -> Tensor:
    """Mean next-token cross-entropy of rows, without more logits than it needs.

    Args:
        llm: A causal LM.
        read: What it reads, and the layout with its labels.
        chunk: Positions whose logits exist at once; None makes the logits of all positions.
        kernel: ``"torch"``, or ``"liger"`` for an LLM that passes ``check_liger``.
    """
    arguments, labels, targets = read.arguments, read.layout.labels, read.layout.targets
    if chunk is None or not splits_logits(llm):
        return token_loss(llm(**arguments).logits, labels, targets)
    hidden = last_hidden(llm, read)
    if kernel == "liger":
        return liger_token_loss(llm, hidden, labels, targets)
    return hidden_token_loss(llm, hidden, labels, targets, chunk)


def find_targets(labels: Tensor) -> Tensor:
    """Positions ``(K,)`` int64 into ``B * L`` whose next one in ``(B, L)`` has a label, where no layout says them."""
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def token_loss(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Next-token cross-entropy in float32 over the positions that carry a label.

    Args:
        logits: ``(B, L, V)``.
        labels: ``(B, L)`` int64, ``IGNORE_INDEX`` where there is no loss.
        targets: ``(K,)`` int64, the positions before those with a label; None to find them in the labels.
        reduction: ``"mean"`` over all labeled tokens of the batch, or ``"none"`` for the mean of each row ``(B,)``.

    Returns:
        Zero, with a graph, where there is no label.
    """
    targets = find_targets(labels) if targets is None else targets
    states, wanted = _labeled(logits, labels, targets)
    losses = F.cross_entropy(states.float(), wanted, reduction="none")  # (K,)
    if reduction == "mean":
        return losses.mean() if len(losses) else 0.0 * logits.sum()
    rows = targets // labels.shape[1]
    sums, counts = (
        losses.new_zeros(len(labels)).index_add(0, rows, item) for item in (losses, torch.ones_like(losses))
    )
    return sums / counts.clamp(min=1)


def splits_logits(llm: Any) -> bool:
    """Whether the logits of an LLM are its output embedding of the last hidden states, and nothing more."""
    config = llm.config
    rules = [getattr(config, name, None) for name in _LOGIT_RULES]
    return llm.get_output_embeddings() is not None and all(rule in (None, 1, 1.0) for rule in rules)


def check_liger(llm: Any) -> None:
    """Whether liger-kernel's fused output layer and loss can be used with an LLM here.

    Raises:
        RuntimeError: The package or a GPU is missing.
        ValueError: The LLM does more to its logits than a linear layer.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise RuntimeError(
            "kernel='liger' needs the package liger-kernel: pip install 'mg_llava[liger]', or set kernel='torch'"
        )
    if not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"):
        raise RuntimeError("kernel='liger' needs CUDA for its Triton kernels; set kernel='torch' here")
    if not splits_logits(llm) or type(llm.get_output_embeddings()) is not nn.Linear:
        raise ValueError(
            f"kernel='liger' needs an LLM whose logits are a linear layer of its hidden states, and "
            f"{type(llm).__name__} changes them; set kernel='torch'"
        )


def liger_token_loss(llm: Any, hidden: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """As :func:`hidden_token_loss`, with liger-kernel, whose forward pass computes the gradients as well.

    So no logits are made again. Only for whole weights: where processes share the head's (ZeRO-3), and without any
    label, it is the plain loss.

    Args:
        llm: A causal LM that passes ``check_liger``.
        hidden: ``(B, L, D)``, after the last norm.
        labels: ``(B, L)`` int64, ``IGNORE_INDEX`` where there is no loss.
        targets: As for :func:`causal_loss`.
    """
    head = llm.get_output_embeddings()
    states, wanted = _labeled(hidden, labels, targets)
    if not len(wanted) or hasattr(head.weight, "ds_id"):
        return hidden_token_loss(llm, hidden, labels, targets, max(1, len(wanted)))
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(states.to(head.weight.dtype), head.weight, wanted, head.bias)


def hidden_token_loss(llm: Any, hidden: Tensor, labels: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """``token_loss`` of the logits of the last hidden states, made for ``chunk`` labeled positions at a time.

    Args:
        llm: A causal LM that ``splits_logits``.
        hidden: ``(B, L, D)``, after the last norm.
        labels: ``(B, L)`` int64, ``IGNORE_INDEX`` where there is no loss.
        targets: As for :func:`causal_loss`.
        chunk: Positions whose logits exist at once; with more of them, logits are made again in the backward pass.
    """
    states, wanted = _labeled(hidden, labels, targets)
    if not len(wanted):
        # The head takes part all the same, so that all processes reduce the same gradients.
        return 0.0 * _chunk_loss(llm, hidden[:1, 0], labels.new_zeros(1)) + 0.0 * hidden.sum()
    # Processes that share a head's weights (ZeRO-3) must call it equally often, whatever they have of labels.
    if len(wanted) <= chunk or hasattr(llm.get_output_embeddings().weight, "ds_id"):
        return _chunk_loss(llm, states, wanted) / len(wanted)
    pieces = zip(states.split(chunk), wanted.split(chunk), strict=True)
    sums = [checkpoint(_chunk_loss, llm, state, target, use_reentrant=False) for state, target in pieces]
    return torch.stack(sums).sum() / len(wanted)


def _labeled(states: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states or logits ``(K, C)`` before the tokens with a label, and these tokens ``(K,)``."""
    return states.flatten(0, 1).index_select(0, targets), labels.flatten().index_select(0, targets + 1)


def _chunk_loss(llm: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits = llm.get_output_embeddings()(states)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def last_hidden(llm: Any, read: LLMInputs) -> Tensor:
    """``(B, L, D)``, after the last norm; computed once for all losses of a step."""
    if "hidden" not in read.memo:
        read.memo["hidden"] = decoder_of(llm)(**read.arguments).last_hidden_state
    return read.memo["hidden"]


def decoder_of(llm: Any) -> Any:
    """The part of a causal LM, possibly with adapters, that gives hidden states instead of logits."""
    whole = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    return getattr(whole, whole.base_model_prefix, whole)
