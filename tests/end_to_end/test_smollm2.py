"""The miniature with SmolLM2's real weights: fluent before training, and two iterations of both stages."""

import math
from pathlib import Path

import pytest
from mmengine.config import Config
from safetensors.torch import load_file

from mg_llava.inference import Predictor
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.registry import MODELS
from tests import toy
from tests.end_to_end.conftest import Project
from tests.run import ROOT, read_losses
from tests.smollm2 import find_smollm2

pytestmark = pytest.mark.slow

CONFIGS = {stage: ROOT / "configs" / f"mg_llava_nano_smollm2_{stage}.py" for stage in ("pretrain", "instruct")}


@pytest.fixture(scope="module", autouse=True)
def _weights() -> None:
    find_smollm2()


def test_it_speaks_before_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = Config.fromfile(CONFIGS["pretrain"])
    predictor = Predictor(
        MODELS.build(config.model), config.tokenizer, config.prompt_template, config.picture_processor
    )
    answer = predictor.predict(None, "What is the capital of France? Answer in one sentence.", max_new_tokens=30)
    assert "Paris" in answer.text
    # it ends by itself: where the template's turn ends, not where tokens run out
    assert not answer.truncated and "<|" not in answer.text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four records."""
    return toy.write_data(tmp_path_factory.mktemp("smollm2"), records=4)


def test_two_iterations_of_both_stages(data: dict[str, str], project: Project) -> None:
    options = [f"train_dataloader.dataset.{key}={value}" for key, value in data.items()]
    options += ["train_cfg.max_epochs=1", "param_scheduler.1.end=1", "train_dataloader.batch_size=2"]
    options += ["default_hooks.checkpoint.save_optimizer=False", "default_hooks.logger.interval=1"]
    options += ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    losses: dict[str, dict[int, float]] = {}
    folders: dict[str, Path] = {}
    for stage, extra in (("pretrain", []), ("instruct", ["train_dataloader.sampler.per_device_batch_size=2"])):
        if folders:
            extra = [*extra, f"model.pretrained_pth={folders['pretrain']}"]
        folders[stage], output = project.train(CONFIGS[stage], "--cfg-options", *options, *extra, how="here")
        assert (folders[stage] / "iter_2.pth").exists(), output[-4000:]
        losses[stage] = read_losses(folders[stage])
        assert sorted(losses[stage]) == [1, 2]
        assert all(math.isfinite(loss) for loss in losses[stage].values())
    trained = load_training_checkpoint(folders["instruct"] / "iter_2.pth")
    before = load_file(Path(find_smollm2()) / "model.safetensors")
    # the real weights, moved a little, in every layer
    assert all(f"llm.{key}" in trained for key in before)
    moved = [(trained[f"llm.{key}"] - before[key]).abs().max() for key in before if "layers." in key]
    assert all(0 < step < 1e-3 for step in moved)
    assert not any(key.startswith("llm.") for key in load_training_checkpoint(folders["pretrain"] / "iter_2.pth"))
