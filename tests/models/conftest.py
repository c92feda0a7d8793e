"""Fixtures of the model tests."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden_conv_gate() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "conv_gate.safetensors")


@pytest.fixture(scope="session")
def golden_box_features() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "box_features.safetensors")


@pytest.fixture(scope="session")
def golden_sequence() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sequence.safetensors")
