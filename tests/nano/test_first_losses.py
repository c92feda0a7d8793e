"""Both stages of the miniature begin with the stored losses, with any torch and transformers that they are run on.

A seed gives the same weights at the start on all of them. The stored losses are of the pinned row, made anew there by
``python -m tests.nano.test_first_losses``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.run import ROOT, read_losses, train_here

GOLDEN = Path(__file__).parents[1] / "golden" / "nano_losses.json"
STEPS = 20
STAGES = {"stage1": ("pretrain", 2e-4), "stage2": ("instruct", 2e-5)}
"""For each stage its leaf, and a learning rate with which rounding, which differs between releases, does not grow.

With those of the leaves it grows tenfold in each step from the fifth on.
"""
OPTIONS = {
    "train_cfg.max_iters": STEPS,
    "train_cfg.max_epochs": None,
    "train_dataloader.batch_size": 4,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    # with the usual one AdamW makes steps out of the rounding errors of tiny gradients
    "optim_wrapper.optimizer.eps": 1e-3,
    "default_hooks.logger.interval": 1,
    "log_processor.window_size": 1,
}


def measure(folder: Path) -> dict[str, list[float]]:
    """Losses by stage; the second one starts from the checkpoint of the first."""
    data = folder / "data"
    sizes = ["--stage1", "40", "--stage2", "80", "--heldout", "1", "--out", str(data)]
    subprocess.run([sys.executable, str(ROOT / "data/nano/make_data.py"), *sizes], check=True, capture_output=True)
    losses: dict[str, list[float]] = {}
    for stage, (leaf, rate) in STAGES.items():
        dataset = {"data_path": f"{stage}.json", "image_folder": "images", "box_path": f"{stage}_boxes.json"}
        options = {**OPTIONS, "optim_wrapper.optimizer.lr": rate}
        options |= {f"train_dataloader.dataset.{key}": data / name for key, name in dataset.items()}
        if losses:
            options["model.pretrained_pth"] = folder / "stage1"
        given = [f"{key}={value}" for key, value in options.items()]
        config, work_dir = ROOT / "configs" / f"mg_llava_nano_{leaf}.py", folder / stage
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
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name))
    origin = (
        f"Losses of {STEPS} steps of four samples in each stage of the miniature, seed 0, CPU, float32, torch "
        f"{torch.__version__}, made by `python -m tests.nano.test_first_losses`"
    )
    GOLDEN.write_text(json.dumps({"origin": origin, "losses": measured}, indent=1) + "\n")
