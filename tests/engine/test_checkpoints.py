"""A checkpoint goes only when its successor is whole; nothing that is nan or inf is saved as good."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook

from mg_llava.engine import checkpoints
from mg_llava.engine.checkpoints import SaveError
from mg_llava.engine.losses import NonFiniteError
from mg_llava.models.weights.checkpoint import load_training_checkpoint

KEEP_ONE = {"default_hooks.checkpoint.max_keep_ckpts": 1}


def names(folder):
    """Checkpoints and what saving one may leave, below no run's log folder."""
    return sorted(entry.name for entry in Path(folder).iterdir() if "iter_" in entry.name or "last" in entry.name)


def cut_writes(monkeypatch, after: int):
    """Let the disk be full in the middle of the write number ``after``."""
    put, count = LocalBackend.put, []

    def full(self, content, path):
        count.append(path)
        if len(count) > after:
            Path(path).write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, content, path)

    monkeypatch.setattr(LocalBackend, "put", full)


def refuse(monkeypatch, function: str, after: int):
    """Let a step of saving fail from call number ``after`` on."""
    original, count = getattr(checkpoints, function), []

    def refusing(*arguments):
        count.append(arguments)
        if len(count) > after:
            raise PermissionError(errno.EACCES, "refused")
        return original(*arguments)

    monkeypatch.setattr(checkpoints, function, refusing)


FAULTS = {
    "full disk": cut_writes,
    "move": lambda monkeypatch, after: refuse(monkeypatch, "settle", after),
    "pointer": lambda monkeypatch, after: refuse(monkeypatch, "write_text", after),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_save_keeps_the_good_one(runs, monkeypatch, fault):
    _, whole = runs.train(**KEEP_ONE)
    FAULTS[fault](monkeypatch, 1)
    with pytest.raises(SaveError, match=r"iter_4.pth could not be saved: .*The last good one is .*/iter_2.pth;"):
        runs.train(**KEEP_ONE)
    good = runs.work_dir / "iter_2.pth"
    assert [name for name in names(runs.work_dir) if name != "iter_4.pth"] == ["iter_2.pth", "last_checkpoint"]
    assert (runs.work_dir / "iter_4.pth").exists() == (fault == "pointer")
    assert (runs.work_dir / "last_checkpoint").read_text() == str(good)
    monkeypatch.undo()
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda seconds: None)
    _, rest = runs.train(resume=good, **KEEP_ONE)
    assert rest == {step: loss for step, loss in whole.items() if step > 2}


def test_first_save_that_fails_says_that_there_is_none(runs, monkeypatch):
    cut_writes(monkeypatch, 0)
    with pytest.raises(SaveError, match=r"iter_2.pth could not be saved: .*full.*There is none before it"):
        runs.train(**KEEP_ONE)
    assert names(runs.work_dir) == []


@pytest.mark.parametrize(("keep", "left"), [(1, ["iter_5.pth"]), (2, ["iter_4.pth", "iter_5.pth"]), (-1, None)])
def test_older_checkpoints_go_afterwards(runs, keep, left):
    runs.train(**{"default_hooks.checkpoint.max_keep_ckpts": keep})
    left = left or ["iter_2.pth", "iter_4.pth", "iter_5.pth"]
    assert names(runs.work_dir) == [*left, "last_checkpoint"]
    assert (runs.work_dir / "last_checkpoint").read_text() == str(runs.work_dir / "iter_5.pth")


def test_older_ones_outlive_the_write(runs, monkeypatch):
    """While a checkpoint is written the one before is there, under its name."""
    seen = []
    put = LocalBackend.put

    def watching(self, content, path):
        seen.append(names(Path(path).parent))
        put(self, content, path)

    monkeypatch.setattr(LocalBackend, "put", watching)
    runs.train(**KEEP_ONE)
    assert seen == [[], ["iter_2.pth", "last_checkpoint"], ["iter_4.pth", "last_checkpoint"]]


def test_kill_before_deletion_is_made_up_for(runs, monkeypatch):
    """A run killed between saving and deleting leaves two; the next one deletes the older."""
    monkeypatch.setattr(checkpoints, "remove", lambda path: None)
    runs.train(**KEEP_ONE, **{"train_cfg.max_iters": 4})
    monkeypatch.undo()
    folder = runs.work_dir.with_name("run1")  # of the next run
    shutil.copytree(runs.work_dir, folder, ignore=lambda _, found: [name for name in found if "iter" not in name])
    (folder / ".iter_6.pth.part").write_text("cut off")
    runs.build(resume=folder / "iter_4.pth", **KEEP_ONE, **{"train_cfg.max_iters": 4}).train()
    assert names(folder) == ["iter_4.pth"]


def test_same_content_as_before(runs):
    runner, _ = runs.train()
    found = load_training_checkpoint(runs.work_dir)
    assert all(torch.equal(found[name], tensor) for name, tensor in runner.model.state_dict().items())


def test_process_that_is_not_first_deletes_nothing(runs, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not checkpoints._writes_here()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert checkpoints._writes_here() and os.environ["LOCAL_RANK"] == "0"


class Poison(Hook):
    """Makes one trained weight bad after an iteration, behind the loss's back."""

    priority = "VERY_HIGH"

    def __init__(self, name, value, after):
        self.name, self.value, self.after = name, value, after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            dict(runner.model.named_parameters())[self.name].data.view(-1)[0] = self.value


@pytest.mark.parametrize(
    ("name", "value"),
    [("projector.weight", float("nan")), ("fuse_module.bias", float("inf")), ("llm.weight", -float("inf"))],
)
def test_bad_weights_are_not_saved(runs, name, value):
    hook = {"type": "tests.engine.test_checkpoints.Poison", "name": name, "value": value, "after": 4}
    with pytest.raises(NonFiniteError, match=rf"iter_4.pth is not saved: .*{name}.*last good one is .*iter_2.pth"):
        runs.train(custom_hooks=[hook], **KEEP_ONE)
    assert names(runs.work_dir) == ["iter_2.pth", "last_checkpoint"]


def test_frozen_weights_do_not_count(runs):
    hook = {"type": "tests.engine.test_checkpoints.Poison", "name": "visual_encoder.weight", "value": float("nan")}
    runs.train(custom_hooks=[hook | {"after": 5}])
    assert "iter_5.pth" in names(runs.work_dir)
