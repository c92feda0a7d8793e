"""Operations of a training step that a GPU launches a kernel for, by part, on fake tensors of the full size.

A GPU waits for the host where it is given many small operations. How many there are follows from the code alone:
the step runs on tensors that have shapes but no values, so that a model of any size is counted on a CPU.
"""

import argparse
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mg_llava.data.config import find_model, load_config
from mg_llava.models.losses.language import decoder_of
from mg_llava.models.objects import roi_align
from mg_llava.models.recompute import enable_checkpointing
from mg_llava.planning.skeleton import build_skeleton
from mg_llava.profiling._measure import ROOT, print_table, rounded
from mg_llava.profiling._sizes import Case, make_batches

HELP = "operations of a training step that a GPU launches a kernel for, by part, of a config at full size"

ENCODERS, LLM, LOSS, REST = "encoders", "llm", "loss", "splice"
"""Parts beside a system's connectors, which have the names of their configs. ``splice`` is all that is in none."""

_NO_KERNEL = frozenset(
    "detach lift_fresh _unsafe_view _reshape_alias empty empty_like empty_strided new_empty new_empty_strided".split()
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    config = ROOT / "configs" / "mg_llava_vicuna7b_instruct.py"
    parser.add_argument("--config", default=str(config), help="training config (default: Vicuna-7B, stage 2)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples in a step (default: %(default)s)")
    parser.add_argument("--boxes", type=int, nargs="+", default=[0, 10, 100], help="boxes of a picture (0 10 100)")
    parser.add_argument("--text", type=int, default=232, help="mean text tokens of a sample (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Count, and print a table.

    Returns:
        By number of boxes ``launches``, by part, and ``own``, the share of them that is neither in encoders nor in the
        LLM.
    """
    skeleton = build_skeleton(find_model(load_config(args.config)))
    enable_checkpointing(skeleton.model.llm, skeleton.checkpointing)
    found = {}
    for boxes in args.boxes:
        case = Case(batch_size=args.batch_size, boxes=boxes, text=args.text)
        found[boxes] = count_launches(skeleton.model, make_batches(case, skeleton.model, 1)[0])
    print(f"{args.config}, {args.batch_size} samples of one picture, about {args.text} text tokens\n")
    parts = sorted({part for one in found.values() for part in one.parts})
    rows = [(part, *(one.parts.get(part, 0) for one in found.values())) for part in parts]
    totals = [("all", *(one.total for one in found.values()))]
    shares = [("beside encoders and LLM", *(f"{one.own:.1%}" for one in found.values()))]
    print_table([("launches", *(f"{boxes} boxes" for boxes in found)), *rows, *totals, *shares])
    return {
        "by_boxes": {str(boxes): {"launches": one.parts, "own": rounded(one.own)} for boxes, one in found.items()},
        "config": args.config,
        "batch_size": args.batch_size,
    }


@dataclass(frozen=True)
class Launches:
    """Operations of a forward and backward pass that compute something.

    Attributes:
        parts: Their number, by part.
        widened: By part, the most elements of a float32 copy of 16-bit tensors as wide as the LLM.
    """

    parts: dict[str, int]
    widened: dict[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @property
    def own(self) -> float:
        """The share that is neither in encoders nor in the LLM."""
        return 1 - (self.parts.get(ENCODERS, 0) + self.parts.get(LLM, 0)) / self.total


def count_launches(system: Any, batch: dict[str, Any], autocast: bool = True) -> Launches:
    """Count a training step in bfloat16; afterwards the system has fake weights, which can be counted again.

    Args:
        system: On any device, such as the meta device.
        batch: Of real tensors, as ``collate`` makes it.
        autocast: Whether weights keep their dtypes and are cast where they are used, as mmengine trains; else all of
            them are bfloat16, as DeepSpeed trains.
    """
    system = system if autocast else system.bfloat16()
    width = None if system.llm is None else system.llm.get_input_embeddings().embedding_dim
    with faked(system.train()) as fake, torch.autocast("cpu", torch.bfloat16, autocast), ExitStack() as stack:
        # of fake tensors as on a GPU
        stack.enter_context(patch.object(roi_align, "computes_together", lambda _: True))
        counter = _Counter(width)
        for owner, name, part in _regions(system):
            stack.enter_context(patch.object(owner, name, partial(counter.inside, part, getattr(owner, name))))
        losses = [partial(counter.inside, LOSS, loss) for loss in system.losses]
        stack.enter_context(patch.object(system, "losses", losses))
        data = tree_map_only(Tensor, fake, batch)
        with counter:
            values = system(data)
            sum(value for name, value in values.items() if name.startswith("loss")).backward()
        system.zero_grad(set_to_none=True)
    return Launches(dict(counter.launches), dict(counter.widened))


@contextmanager
def faked(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, a model of any device has fake parameters and buffers; gives what makes other tensors fake."""
    with FakeTensorMode() as mode:
        for module in model.modules():
            for name, old in [*module._parameters.items(), *module._buffers.items()]:
                if old is None:
                    continue
                new = torch.empty(old.shape, dtype=old.dtype)
                is_parameter = name in module._parameters
                setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new)
        yield mode.from_tensor


class _Counter(TorchDispatchMode):
    """Counts operations by the part that they are in; those of the backward pass by the part that caused them."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.widened: dict[str, int] = {}
        self._width = width
        self._inside: list[str] = []
        self._begins, self._parts = [0], [REST]
        """Numbers of nodes of the graph from which on they belong to a part."""

    def inside(self, part: str, run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run something that belongs to a part."""
        self._inside.append(part)
        try:
            return run(*arguments, **named)
        finally:
            self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        part = self._part()
        result = func(*args, **(kwargs or {}))
        if _computes(func):
            self.launches[part] += 1
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.float32 and args[0].itemsize == 2:
            if result.shape[-1:] == (self._width,):
                self.widened[part] = max(result.numel(), self.widened.get(part, 0))
        return result

    def _part(self) -> str:
        """The innermost part that runs, or that of the node whose gradients are computed."""
        node = torch._C._current_autograd_node()
        if self._inside:
            part = self._inside[-1]
        elif node is None or hasattr(node, "variable"):  # sums of a parameter's gradients are the optimizer's
            part = REST
        else:
            number: int = node._sequence_nr()  # type: ignore[attr-defined]
            part = self._parts[bisect_right(self._begins, number) - 1]
        if part != self._parts[-1]:
            self._begins.append(torch._C._autograd._get_sequence_nr())
            self._parts.append(part)
        return part


def _computes(func: Any) -> bool:
    """Whether an operation is more than a view, an allocation, or a question."""
    if func.namespace != "aten" or func._schema.name.removeprefix("aten::") in _NO_KERNEL:
        return False
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and not any(alias is not None and not alias.is_write for alias in aliases)


def _regions(system: Any) -> Iterator[tuple[Any, str, str]]:
    """Methods of a system and its parts, with the name of the part that they belong to."""
    yield system, "look", ENCODERS
    for part, module in system.named_parts():
        if part.role == "encoder":
            yield module, "forward", ENCODERS
        elif part.role == "llm":
            places = (decoder_of(module), module.get_input_embeddings(), module.get_output_embeddings())
            yield from ((place, "forward", LLM) for place in places)
        else:
            kind = type(module)
            own = [name for name in dir(kind) if not name.startswith("_") and not hasattr(nn.Module, name)]
            methods = [name for name in own if callable(getattr(kind, name))]
            yield from ((module, name, part.config) for name in ["forward", *methods])
