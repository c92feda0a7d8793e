"""torch.compile for parts of a model, in place: names of parameters, and so checkpoints, stay as they are."""

import importlib.util
import os
import shutil

import torch
from torch import nn

_COMPILERS = ("g++", "clang++", "c++")


def compile_parts(*parts: nn.Module | None) -> None:
    """Compile modules in place; the first batch of each new shape takes minutes at real sizes.

    Raises:
        RuntimeError: There is no compiler to do it with.
    """
    check_compiler()
    for part in parts:
        if part is not None:
            part.compile()


def check_compiler() -> None:
    """Whether torch.compile can make code for this machine.

    Raises:
        RuntimeError: A compiler is missing.
    """
    asked = os.environ.get("CXX")
    names = [asked] if asked else list(_COMPILERS)
    if not any(shutil.which(name) for name in names):
        raise RuntimeError(
            f"torch.compile needs a C++ compiler ({', '.join(names)}), and there is none in PATH; install one, or set "
            "compile_vision=False"
        )
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise RuntimeError("torch.compile needs the package triton on a GPU; install it, or set compile_vision=False")
