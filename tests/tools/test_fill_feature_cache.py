"""The tool fills a cache for a config, and the real training reads it."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests import toy
from tests.end_to_end.conftest import Project
from tests.run import ROOT, read_losses, run_tool

CACHE = "train_dataloader.dataset.caches.feature_cache={}"


@pytest.fixture
def project(tmp_path: Path, toy_paths: dict[str, str]) -> Project:
    shutil.copytree(ROOT / "configs" / "_base_", tmp_path / "configs" / "_base_")
    return Project(tmp_path, toy_paths, toy.write_data(tmp_path / "data"))


@pytest.fixture
def config(project: Project) -> Path:
    return project.config("leaf", "instruct", batch_size=4, seed=0, pretrained_pth=None)


def run(*arguments):
    """Run the tool; gives its exit status, its report and what it complained of."""
    done = run_tool("fill_feature_cache", *arguments)
    return done.status, done.result if done.status in (0, 3) else {}, done.err


def test_fill_check_and_fill_again(project, config, tmp_path):
    folder = tmp_path / "features"
    assert run(config)[0] == 2
    status, report, _ = run(config, "--folder", folder, "--batch-size", 4, "--dtype", "int8")
    assert status == 0 and report["dtype"] == "int8" and report["pictures"] == {"absent": 13}
    assert 0 < report["error"] < 0.01 and report["bytes"] == sum(p.stat().st_size for p in folder.glob("*.features"))
    (tmp_path / "data" / "images" / "0_0.png").unlink()
    assert run(config, "--folder", folder, "--check")[:2] == (
        0,
        {"folder": str(folder), "dtype": "int8", "pictures": {"known": 12, "unreadable": 1}},
    )
    status, _, complaint = run(config, "--folder", folder, "--dtype", "int8")
    assert status == 3 and "cannot be read: picture" in complaint and "0_0.png" in complaint
    shutil.copy(tmp_path / "data" / "images" / "2_0.png", tmp_path / "data" / "images" / "0_0.png")
    status, report, _ = run(config, "--folder", folder, "--check")
    assert status == 3 and report["pictures"] == {"known": 12, "changed": 1}
    status, report, _ = run(config, "--dtype", "int8", "--cfg-options", CACHE.format(folder))
    assert status == 0 and report["added"] == 1
    status, _, complaint = run(config, "--folder", folder)
    assert status == 1 and "for something else (dtype is int8, wanted float32)" in complaint


@pytest.mark.slow
def test_training_reads_it(project, config, tmp_path):
    folder = tmp_path / "features"
    assert run(config, "--folder", folder)[0] == 0
    work_dir, output = project.train(config, "--cfg-options", CACHE.format(folder), how="here")
    assert "no encoder runs" in output, output[-4000:]
    settings = Config.fromfile(config)
    settings.merge_from_dict({"work_dir": str(tmp_path / "plain"), "randomness.seed": 0})
    Runner.from_cfg(settings).train()
    expected = read_losses(tmp_path / "plain")
    assert len(expected) == 4 and read_losses(work_dir) == pytest.approx(expected, rel=1e-6)
