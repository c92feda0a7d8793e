"""Numbers of GPUs as their makers publish them: memory, and dense 16-bit tensor throughput."""

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        name: As typed on the command line.
        memory: Bytes.
        flops: Dense 16-bit floating-point operations per second, without sparsity.
        bfloat16: Whether it computes in bfloat16.
    """

    name: str
    memory: float
    flops: float
    bfloat16: bool = True


GPUS = {
    name: GPU(name, gib * 2**30, teraflops * 1e12, name not in ("V100-32G", "T4-16G"))
    for name, gib, teraflops in (
        ("A100-80G", 80, 312),
        ("A100-40G", 40, 312),
        ("A800-80G", 80, 312),
        ("H100-80G", 80, 989),
        ("H800-80G", 80, 989),
        ("H200-141G", 141, 989),
        ("L40S-48G", 48, 362),
        ("A6000-48G", 48, 155),
        ("A10-24G", 24, 125),
        ("RTX4090-24G", 24, 165),
        ("RTX3090-24G", 24, 71),
        ("V100-32G", 32, 125),
        ("T4-16G", 16, 65),
    )
}
"""By name, from GiB and dense teraflops; the last two do not compute in bfloat16."""


def find_gpu(name: str) -> GPU:
    """The GPU of a name, in any case.

    Raises:
        ValueError: It is unknown.
    """
    known = {key.lower(): gpu for key, gpu in GPUS.items()}
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=1, cutoff=0.3)
        hint = f"; nearest: {known[near[0]].name}" if near else ""
        raise ValueError(f"GPU {name!r} is unknown{hint}; known: {', '.join(GPUS)}")
    return known[name.lower()]
