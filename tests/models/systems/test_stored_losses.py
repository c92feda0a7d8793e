"""Fifty steps of the toy in each stage give the losses that are stored: no change of the numbers goes unseen.

The stored losses are made anew by ``python -m tests.models.systems.test_stored_losses``.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from mg_llava.registry import FUNCTIONS, MODELS
from tests import toy

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.json"
STEPS = 50
STAGES = {"stage 1": {"tuning": "frozen", "lr": 1e-3}, "stage 2": {"tuning": "full", "lr": 3e-4}}
SAMPLES = {
    "with boxes": [(9, 1), (6, 0), (12, 2), (7, 1)],
    "without boxes": [(8, 1), (11, 2)],
    "text alone": [(10, 0), (5, 0), (7, 0)],
    "many boxes": [(14, 1), (9, 1), (20, 3)],
    "one sample": [(16, 1)],
}
"""Text ids and pictures of each sample of a batch."""
MOST_BOXES = {"without boxes": 0, "many boxes": 12}


def make_batches() -> list[dict]:
    """One batch of each kind."""
    collate = FUNCTIONS.get("mg_llava.collate")
    return [
        collate(toy.make_batch(samples, boxes_per_image=MOST_BOXES.get(kind, 3), seed=seed))["data"]
        for seed, (kind, samples) in enumerate(SAMPLES.items())
    ]


def train(model: torch.nn.Module, lr: float) -> list[float]:
    """Losses of the steps; the batches take turns."""
    batches = make_batches()
    # with the usual eps AdamW makes steps out of the rounding errors of tiny gradients, which differ between CPUs
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0, eps=1e-3)
    losses = []
    for step in range(STEPS):
        loss = model.train()(batches[step % len(batches)], mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def measure(paths: dict[str, str], folder: Path) -> dict[str, list[float]]:
    """Losses by stage; the second stage starts from the checkpoint of the first."""
    losses, checkpoint = {}, None
    for number, (stage, settings) in enumerate(STAGES.items(), start=1):
        torch.manual_seed(number)
        model = MODELS.build(toy.model_config(paths, settings["tuning"], pretrained_pth=checkpoint))
        losses[stage] = train(model, settings["lr"])
        checkpoint = str(folder / f"stage_{number}.pth")
        torch.save({"state_dict": model.state_dict()}, checkpoint)
    return losses


@pytest.fixture(scope="module")
def losses(toy_paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return measure(toy_paths, tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_stored_ones(losses: dict[str, list[float]], stage: str) -> None:
    stored = json.loads(GOLDEN.read_text())["losses"][stage]
    assert len(stored) == STEPS
    assert losses[stage] == pytest.approx(stored, rel=1e-4)


def test_both_stages_learn(losses: dict[str, list[float]]) -> None:
    """Stored numbers of a model that learns nothing would guard nothing."""
    rounds = len(SAMPLES)
    for stage in losses.values():
        assert sum(stage[-rounds:]) < 0.9 * sum(stage[:rounds])
    assert sum(losses["stage 2"][:rounds]) < sum(losses["stage 1"][:rounds])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = measure(toy.write_all(Path(name) / "toy"), Path(name))
    origin = (
        f"Losses of {STEPS} steps of the toy model in each stage, CPU, float32, torch {torch.__version__}, made by "
        "`python -m tests.models.systems.test_stored_losses`"
    )
    GOLDEN.write_text(json.dumps({"origin": origin, "losses": found}, indent=1) + "\n")
