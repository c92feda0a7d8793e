"""Models of the repository's configs without weights, each made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from mg_llava.planning import Skeleton, build_skeleton

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "published"
LEAVES = sorted(
    file.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for file in (ROOT / "configs").rglob("*.py")
    if "_base_" not in file.parts
)


@cache
def load_config(leaf: str) -> Config:
    """A leaf config by its name below ``configs``; do not change it."""
    config = Config.fromfile(ROOT / "configs" / f"{leaf}.py")
    if config.model.llm is not None and "generated" in config.model.llm.path:  # made by a script, of this one
        config.model.llm.path = "data/nano/llm"
    return config


@pytest.fixture(scope="session")
def skeleton() -> Callable[..., Skeleton]:
    """Makes the skeleton of a leaf, with changes of its ``model``."""
    made: dict[str, Skeleton] = {}

    def make(leaf: str, **changes: object) -> Skeleton:
        key = f"{leaf} {changes}"
        if key not in made:
            made[key] = build_skeleton({**load_config(leaf).model, **changes})
        return made[key]

    return make
