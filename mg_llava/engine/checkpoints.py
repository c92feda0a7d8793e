"""Checkpoints that take their place when they are whole; the one before goes only then."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from mg_llava.engine.losses import NonFiniteError, nonfinite_parameters
from mg_llava.engine.saving import Writing, collected, set_aside, write_files
from mg_llava.registry import HOOKS
from mg_llava.work.atomic import naming_full_disks, remove, settle, write_text

POINTER = "last_checkpoint"
KEPT, LAST = "keep_ckpt_ids", "last_ckpt"


class SaveError(RuntimeError):
    """A checkpoint could not be saved; the one before is still there and still the last one."""


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, but a failed save loses nothing.

    A checkpoint, a file or DeepSpeed's folder, is written beside its place, flushed and moved there; then
    ``last_checkpoint`` is replaced, and only then older ones are deleted. So the disk must hold one more than
    ``max_keep_ckpts``. Weights that are nan or inf are not saved.

    Args:
        background: Copy the content into host memory and write it from a thread, while training goes on. Where memory
            is short, training waits for the write. An error shows at the next step after it; the run ends when the
            last checkpoint is in its place.
        **kwargs: Arguments of ``CheckpointHook``.
    """

    file_backend: Any
    keep_ckpt_ids: deque[int]

    def __init__(self, *args: Any, background: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.background = background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._unfinished: Future[None] | None = None
        self._before: dict[str, Any] = {}
        self._group: dist.ProcessGroup | None = None

    def before_train(self, runner: Any) -> None:
        """Find the folder and clear what a killed run left unfinished."""
        super().before_train(runner)
        if self._is_local and _writes_here():
            for part in Path(self.out_dir).glob(f".{self.filename_tmpl.format('*')}.part"):
                remove(part)
        if get_world_size() > 1:  # of its own: training uses the others at the same time
            self._group = dist.new_group(backend="gloo")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where it is due.

        Raises:
            NonFiniteError: A trained tensor holds nan or inf.
            SaveError: This checkpoint, or the one before, could not be written.
        """
        if self._unfinished is not None and self._unfinished.done():
            self._finish(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train(self, runner: Any) -> None:
        """Wait until the last checkpoint is in its place; errors as for ``after_train_iter``."""
        self._finish(runner)
        super().after_train(runner)

    @property
    def _is_local(self) -> bool:
        return isinstance(self.file_backend, LocalBackend)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        self._finish(runner)
        name = self.filename_tmpl.format(step)
        if names := nonfinite_parameters(runner.model):
            raise NonFiniteError(
                f"{name} is not saved: {len(names)} trained tensors hold nan or inf, e.g. {names[0]}. "
                f"{_last_good(runner)} Lower the learning rate or look at the data"
            )
        if not self._is_local:
            return super()._save_checkpoint_with_step(runner, step, meta)
        info = runner.message_hub.runtime_info
        self._before = {key: info.get(key) for key in (KEPT, LAST)}
        path = Path(self.out_dir) / name
        kept = [number for number in getattr(self, KEPT, ()) if number != step]
        # with the one that is about to go: a run that resumes after a kill in between deletes it
        runner.message_hub.update_info(KEPT, [*kept, step])
        runner.message_hub.update_info(LAST, str(path))
        part = path.with_name(f".{path.name}.part")
        with collected(runner) as writings:
            runner.save_checkpoint(
                self.out_dir,
                part.name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        self.last_ckpt = str(path)  # type: ignore[assignment]
        aside = self.background and set_aside(writings)
        self._unfinished = self._thread.submit(self._write, Path(runner.work_dir), writings, part, path, [*kept, step])
        if not aside:
            self._finish(runner)

    def _finish(self, runner: Any) -> None:
        """Wait for the thread, and raise what stopped it."""
        if self._unfinished is None:
            return
        unfinished, self._unfinished = self._unfinished, None
        try:
            unfinished.result()
        except Exception as error:  # a full disk shows as many errors, depending on who writes
            runner.message_hub.runtime_info.update({k: v for k, v in self._before.items() if v is not None})
            raise SaveError(f"{self.last_ckpt} could not be saved: {error}. {_last_good(runner)}") from error

    def _write(self, work_dir: Path, writings: list[Writing], part: Path, path: Path, numbers: list[int]) -> None:
        """Write, move, name and delete; runs in the thread, in all processes."""
        try:
            with naming_full_disks(path):
                self._together(lambda: write_files(writings))
                self._together(lambda: settle(part, path) if is_main_process() else None)
                if _writes_here() and part.exists():  # another machine with a disk of its own
                    settle(part, path)
        except BaseException:
            if _writes_here():
                remove(part)
            raise
        if is_main_process():
            write_text(work_dir / POINTER, str(path))
        self._drop(numbers)

    def _together(self, act: Callable[[], Any]) -> None:
        """Act in all processes; where one fails, all do."""
        failure: Exception | None = None
        try:
            act()
        except Exception as error:
            failure = error
        if self._group is not None:
            failures: list[str | None] = [None] * get_world_size()
            dist.all_gather_object(failures, failure and str(failure), self._group)
            others = [f"process {rank}: {text}" for rank, text in enumerate(failures) if text]
            if others and failure is None:
                raise RuntimeError(others[0])
        if failure is not None:
            raise failure

    def _drop(self, numbers: list[int]) -> None:
        """Delete the checkpoints beyond ``max_keep_ckpts``, oldest first."""
        if self.max_keep_ckpts <= 0:
            return
        for number in numbers[: -self.max_keep_ckpts]:
            if _writes_here():
                remove(Path(self.out_dir) / self.filename_tmpl.format(number))
        self.keep_ckpt_ids = deque(numbers, self.max_keep_ckpts)


def _writes_here() -> bool:
    """Tell whether this process removes files: the first one of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _last_good(runner: Any) -> str:
    pointer = Path(runner.work_dir) / POINTER
    name = pointer.read_text().strip() if pointer.is_file() else ""
    return f"The last good one is {name}; go on with --resume {name}." if name else "There is none before it."
