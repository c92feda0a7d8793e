"""Fixtures that several test modules share."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests import toy


@pytest.fixture(scope="session")
def toy_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the toy encoders and LLM in their real formats."""
    return toy.write_all(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
