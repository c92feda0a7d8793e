"""The miniature with its weights, for benchmarks that ask it."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mg_llava.profiling._measure import ROOT

CONFIG = ROOT / "configs" / "mg_llava_nano_instruct.py"
_FOLDERS = ("demo", "experiments/nano")


def load_miniature(config: Path, checkpoint: Path | None) -> tuple[Any, bool]:
    """The predictor, and whether it was trained; without a checkpoint the newest of demo and grid is looked for."""
    from mg_llava.inference import Predictor
    from mg_llava.registry import MODELS

    found = checkpoint or _newest()
    if found is not None:
        # one that was found may be of an older miniature
        with contextlib.nullcontext() if checkpoint else contextlib.suppress(ValueError):
            return Predictor.from_pretrained(config, found, "cpu"), True
    parsed = Config.fromfile(str(config))
    torch.manual_seed(0)
    model = MODELS.build({**parsed.model, "pretrained_pth": None})
    return Predictor(model, parsed.tokenizer, parsed.prompt_template, parsed.picture_processor), False


def _newest() -> Path | None:
    found = [
        path
        for folder in _FOLDERS
        for path in (ROOT / "work_dirs" / folder).glob("mg_llava_nano_instruct_seed*/iter_*.pth")
        if path.is_file()
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@contextlib.contextmanager
def at_root() -> Iterator[None]:
    """The miniature's configs name files relative to the repository; its logs are not part of the table."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.chdir(before)
