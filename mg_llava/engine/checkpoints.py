"""Checkpoints that take their place when they are whole; the one before goes only then."""

import os
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from mg_llava.engine.losses import NonFiniteError, nonfinite_parameters
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
    ``max_keep_ckpts``. Weights that are nan or inf are not saved. Arguments are those of ``CheckpointHook``.
    """

    file_backend: Any
    keep_ckpt_ids: deque[int]

    def before_train(self, runner: Any) -> None:
        """Find the folder and clear what a killed run left unfinished."""
        super().before_train(runner)
        if self._is_local and _writes_here():
            for part in Path(self.out_dir).glob(f".{self.filename_tmpl.format('*')}.part"):
                remove(part)

    @property
    def _is_local(self) -> bool:
        return isinstance(self.file_backend, LocalBackend)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        if names := nonfinite_parameters(runner.model):
            raise NonFiniteError(
                f"{name} is not saved: {len(names)} trained tensors hold nan or inf, e.g. {names[0]}. "
                f"{_last_good(runner)} Lower the learning rate or look at the data"
            )
        if not self._is_local:
            return super()._save_checkpoint_with_step(runner, step, meta)
        info = runner.message_hub.runtime_info
        earlier = {key: info.get(key) for key in (KEPT, LAST)}
        path = Path(self.out_dir) / name
        kept = [number for number in getattr(self, KEPT, ()) if number != step]
        # with the one that is about to go: a run that resumes after a kill in between deletes it
        runner.message_hub.update_info(KEPT, [*kept, step])
        runner.message_hub.update_info(LAST, str(path))
        try:
            self._write(runner, path, meta)
        except Exception as error:  # a full disk shows as many errors, depending on who writes
            info.update({key: value for key, value in earlier.items() if value is not None})
            raise SaveError(f"{path} could not be saved: {error}. {_last_good(runner)}") from error
        self.last_ckpt = str(path)  # type: ignore[assignment]
        self._drop(kept, step)

    def _write(self, runner: Any, path: Path, meta: dict[str, Any]) -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            with naming_full_disks(path):
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
                barrier()  # DeepSpeed: all processes have written their files
                if is_main_process():
                    settle(part, path)
                barrier()
                if _writes_here() and part.exists():  # another machine with a disk of its own
                    settle(part, path)
        except BaseException:
            if _writes_here():
                remove(part)
            raise
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, str(path))

    def _drop(self, kept: list[int], step: int) -> None:
        """Delete the checkpoints beyond ``max_keep_ckpts``, oldest first."""
        if self.max_keep_ckpts <= 0:
            return
        for number in [*kept, step][: -self.max_keep_ckpts]:
            if _writes_here():
                remove(Path(self.out_dir) / self.filename_tmpl.format(number))
        self.keep_ckpt_ids = deque([*kept, step], self.max_keep_ckpts)


def _writes_here() -> bool:
    """Tell whether this process removes files: the first one of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _last_good(runner: Any) -> str:
    pointer = Path(runner.work_dir) / POINTER
    name = pointer.read_text().strip() if pointer.is_file() else ""
    return f"The last good one is {name}; go on with --resume {name}." if name else "There is none before it."
