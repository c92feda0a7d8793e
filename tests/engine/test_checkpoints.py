"""A checkpoint goes only when its successor is whole; nothing that is nan or inf is saved as good."""

import errno
import multiprocessing
import os
import random
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook

from mg_llava.engine import checkpoints, saving
from mg_llava.engine.checkpoints import SaveError
from mg_llava.engine.losses import NonFiniteError
from mg_llava.engine.saving import Writing
from mg_llava.models.weights.checkpoint import load_training_checkpoint

KEEP_ONE = {"default_hooks.checkpoint.max_keep_ckpts": 1}


def names(folder):
    """Checkpoints and what saving one may leave, below no run's log folder."""
    return sorted(entry.name for entry in Path(folder).iterdir() if "iter_" in entry.name or "last" in entry.name)


def cut_writes(monkeypatch, after: int):
    """Let the disk be full in the middle of the write number ``after``."""
    write, count = Writing.write, []

    def full(self):
        count.append(self.path)
        write(self)
        if len(count) > after:
            os.truncate(self.path, self.path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writing, "write", full)


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


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_save_keeps_the_good_one(runs, monkeypatch, fault, background):
    _, whole = runs.train(**KEEP_ONE)
    FAULTS[fault](monkeypatch, 1)
    with pytest.raises(SaveError, match=r"iter_4.pth could not be saved: .*The last good one is .*/iter_2.pth;"):
        runs.train(**KEEP_ONE, **{"default_hooks.checkpoint.background": background})
    good = runs.work_dir / "iter_2.pth"
    assert [name for name in names(runs.work_dir) if name != "iter_4.pth"] == ["iter_2.pth", "last_checkpoint"]
    assert (runs.work_dir / "iter_4.pth").exists() == (fault == "pointer")
    assert (runs.work_dir / "last_checkpoint").read_text() == str(good)
    monkeypatch.undo()
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
    write = Writing.write

    def watching(self):
        seen.append(names(self.path.parent))
        write(self)

    monkeypatch.setattr(Writing, "write", watching)
    runs.train(**KEEP_ONE)
    assert seen == [[], ["iter_2.pth", "last_checkpoint"], ["iter_4.pth", "last_checkpoint"]]


class Watch(Hook):
    """Counts the steps that were trained."""

    priority = "LOWEST"
    steps, third = 0, threading.Event()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        type(self).steps += 1
        if self.steps >= 3:
            self.third.set()


@pytest.mark.parametrize(("background", "room"), [(True, True), (True, False), (False, True)])
def test_training_goes_on_while_a_checkpoint_is_written(runs, monkeypatch, background, room):
    """The first write ends only when step 3 is trained; without background or memory, training waits for it."""
    write = Writing.write
    at_end = []

    def slow(self):
        write(self)
        if background and room:
            Watch.third.wait(60)
        at_end.append(Watch.steps)

    monkeypatch.setattr(Writing, "write", slow)
    monkeypatch.setattr(Watch, "steps", 0)
    monkeypatch.setattr(Watch, "third", threading.Event())
    if not room:
        monkeypatch.setattr(saving.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    hooks = [{"type": "tests.engine.test_checkpoints.Watch"}]
    _, losses = runs.train(custom_hooks=hooks, **{"default_hooks.checkpoint.background": background})
    assert at_end[0] == (3 if background and room else 1)
    weights = load_training_checkpoint(runs.work_dir / "iter_2.pth")
    monkeypatch.undo()
    _, plain = runs.train(**{"default_hooks.checkpoint.background": False})
    expected = load_training_checkpoint(runs.work_dir / "iter_2.pth")  # of step 2, whatever was trained meanwhile
    assert losses == plain
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_copies_keep_shared_memory_and_nothing_else():
    flat = torch.arange(6.0)
    tied = torch.nn.Parameter(torch.ones(2))
    content = {"a": flat[:4].view(2, 2).t(), "b": flat[2:], "tied": [tied, tied], "n": np.arange(3), "t": (1, "x")}
    writings = [Writing(content, Path("x")), Writing({"again": flat}, Path("y"))]
    assert saving.set_aside(writings)
    copy, again = (writing.content for writing in writings)
    before = content["a"].clone()
    flat.zero_()
    tied.data.zero_()
    content["n"][:] = 0
    assert torch.equal(copy["a"], before) and copy["a"].stride() == content["a"].stride()
    assert torch.equal(copy["b"], torch.tensor([2.0, 3, 4, 5])) and torch.equal(again["again"], torch.arange(6.0))
    assert copy["n"].tolist() == [0, 1, 2] and copy["t"] == (1, "x") and copy["tied"][0].tolist() == [1, 1]
    assert isinstance(copy["tied"][0], torch.nn.Parameter)
    storages = {tensor.untyped_storage().data_ptr() for tensor in (copy["a"], copy["b"], again["again"])}
    assert len(storages) == 1 and copy["tied"][0].data_ptr() == copy["tied"][1].data_ptr()


def save_until_killed(folder):
    """Checkpoints 1, 2, ... as the hook writes them, each with its number all over."""
    hook = checkpoints.SafeCheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=2, out_dir=str(folder))
    hook.file_backend = LocalBackend()
    for number in range(1, 10_000):
        path = folder / f"iter_{number}.pth"
        content = {"state_dict": {f"w{i}": torch.full((20_000,), float(number)) for i in range(8)}}
        part = path.with_name(f".{path.name}.part")
        hook._unfinished = hook._thread.submit(
            hook._write, folder, [Writing(content, part)], part, path, list(range(1, number + 1))
        )
        hook._unfinished.result()


def test_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path):
    draw = random.Random(0)
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=save_until_killed, args=(folder,))
        process.start()
        pointer = folder / "last_checkpoint"
        while not pointer.exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        path = Path(pointer.read_text())
        state = torch.load(path, weights_only=True)["state_dict"]
        assert {float(tensor.sum()) / 20_000 for tensor in state.values()} == {float(path.stem.split("_")[1])}
        assert all(torch.load(other, weights_only=True) for other in folder.glob("iter_*.pth"))


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
