"""Both stages of the miniature begin with the stored losses, with any torch and transformers that they are run on.

A seed draws the same weights on all of them, and the first learning rates are those of the leaf's run. It is computed
in float64: rounding, which differs between releases, grows about threefold in a step of stage 1, and reaches 1e-4 at
the tenth in float32. The stored losses are of the pinned row, made anew by ``python -m tests.nano.test_first_losses``.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mg_llava.engine.resume import TrainLoop
from tests import forked
from tests.run import ROOT, read_losses, train_here

GOLDEN = Path(__file__).parents[1] / "golden" / "nano_losses.json"
STEPS = 20
STAGES = {"stage1": ("pretrain", 40, 22.5, 450), "stage2": ("instruct", 80, 12.5, 250)}
"""For each stage its leaf and how many records are made; steps of warm-up and of all in the leaf's own run."""
BATCH = 4
OPTIONS = {
    "train_cfg.max_iters": STEPS,
    "train_cfg.max_epochs": None,
    "train_dataloader.batch_size": BATCH,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "default_hooks.logger.interval": 1,
    "log_processor.window_size": 1,
}


class Wide(TorchFunctionMode):
    """Makes float64 of all that asks for float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def run_wide(loop: TrainLoop, run: Callable[[TrainLoop], Any] = TrainLoop.run) -> Any:
    """``TrainLoop.run`` with weights, gradients and all arithmetic of the steps in float64."""
    model = loop.runner.model.double()  # as it was drawn in float32
    step = model.train_step

    def train_step(*args: Any, **kwargs: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        try:
            with Wide():
                return step(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float32)

    with mock.patch.object(model, "train_step", train_step):
        return run(loop)


def measure(folder: Path) -> dict[str, list[float]]:
    """Losses by stage, each from the weights that the seed draws."""
    data = folder / "data"
    sizes = ["--heldout", "1", "--out", str(data)]
    sizes += [word for stage, (_, records, *_) in STAGES.items() for word in (f"--{stage}", str(records))]
    done = forked.run(ROOT / "data" / "nano" / "make_data.py", *sizes)
    assert done.status == 0, done.err
    losses: dict[str, list[float]] = {}
    for stage, (leaf, records, warmup, steps) in STAGES.items():
        dataset = {"data_path": f"{stage}.json", "image_folder": "images", "box_path": f"{stage}_boxes.json"}
        options = OPTIONS | {f"train_dataloader.dataset.{key}": data / name for key, name in dataset.items()}
        epoch = records / BATCH
        options |= {"param_scheduler.0.end": warmup / epoch, "param_scheduler.1.begin": warmup / epoch}
        options |= {"param_scheduler.1.end": steps / epoch, "model.pretrained_pth": None}
        given = [f"{key}={value}" for key, value in options.items()]
        config, work_dir = ROOT / "configs" / f"mg_llava_nano_{leaf}.py", folder / stage
        with mock.patch.object(TrainLoop, "run", run_wide):
            output = train_here(config, "--work-dir", work_dir, "--seed", 0, "--cfg-options", *given)
        assert (work_dir / f"iter_{STEPS}.pth").is_file(), output[-4000:]
        losses[stage] = list(read_losses(work_dir).values())
    return losses


@pytest.mark.slow
def test_losses_are_the_stored_ones(tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text())["losses"]
    found = measure(tmp_path)
    for stage in STAGES:
        assert len(found[stage]) == STEPS
        assert found[stage] == pytest.approx(stored[stage], abs=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name))
    origin = (
        f"Losses of {STEPS} steps of four samples in each stage of the miniature, seed 0, CPU, float64, torch "
        f"{torch.__version__}, made by `python -m tests.nano.test_first_losses`"
    )
    GOLDEN.write_text(json.dumps({"origin": origin, "losses": measured}, indent=1) + "\n")
