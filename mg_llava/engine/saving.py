"""What a checkpoint is made of, held aside, so that training goes on while it is written."""

import contextlib
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import torch

_MARGIN = 1.25  # free memory that a copy needs, in its own size
_SAVERS = ("mmengine.runner.checkpoint", "mmengine.runner.runner", "mmengine._strategy.deepspeed")


@dataclass
class Writing:
    """A file that a runner wants to write: its content as for ``torch.save``, and its path."""

    content: Any
    path: Path

    def write(self) -> None:
        """Write the file and flush it; other threads run meanwhile."""
        with self.path.open("wb") as file:  # torch keeps Python's lock while it writes to a path
            torch.save(self.content, file)
            file.flush()
            os.fsync(file.fileno())


def write_files(writings: list[Writing]) -> None:
    """Write files one after the other."""
    for writing in writings:
        writing.write()


@contextlib.contextmanager
def collected(runner: Any) -> Iterator[list[Writing]]:
    """The files that ``runner.save_checkpoint`` would write in this block; none is written.

    Args:
        runner: mmengine's Runner or FlexibleRunner, with DeepSpeed or without.
    """
    writings: list[Writing] = []

    def keep(state_dict: Any, path: str | Path, *_: Any, **__: Any) -> None:  # DeepSpeed names them so
        writings.append(Writing(state_dict, Path(path)))

    with contextlib.ExitStack() as undo:
        for module in (sys.modules[name] for name in _SAVERS if name in sys.modules):
            undo.callback(setattr, module, "save_checkpoint", vars(module)["save_checkpoint"])
            vars(module)["save_checkpoint"] = keep
        engine = getattr(getattr(getattr(runner, "strategy", None), "model", None), "checkpoint_engine", None)
        if engine is not None:  # DeepSpeed's
            undo.callback(delattr, engine, "save")
            engine.save = keep
        yield writings


def set_aside(writings: list[Writing]) -> bool:
    """Replace contents by copies in host memory that a training step does not change.

    Tensors that share memory do so in the copy, as ``torch.save`` would store them.

    Returns:
        Whether there was room: some more than their size, for each process of this machine. Nothing is changed
        otherwise.
    """
    pickled = BytesIO()
    pickler = _TensorsApart(pickled, pickle.HIGHEST_PROTOCOL)
    pickler.dump([writing.content for writing in writings])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if psutil.virtual_memory().available < _MARGIN * processes * pickler.size:
        return False
    pickled.seek(0)
    unpickler = _TensorsBack(pickled)
    unpickler.copies = pickler.copies()
    for writing, content in zip(writings, unpickler.load(), strict=True):
        writing.content = content
    return True


class _TensorsApart(pickle.Pickler):
    """Pickles all but tensors, which it numbers by the memory that they show."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._views: list[tuple[torch.Tensor, int]] = []

    @property
    def size(self) -> int:
        """Bytes of all memory that the tensors show."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def persistent_id(self, found: Any) -> int | None:
        if type(found) not in (torch.Tensor, torch.nn.Parameter):  # other kinds of tensors are pickled whole
            return None
        storage = found.untyped_storage()
        self._storages[storage._cdata] = storage
        self._views.append((found, storage._cdata))
        return len(self._views) - 1

    def copies(self) -> list[torch.Tensor]:
        """Tensors of the same kind, shape and stride, over copies of their memory on the CPU."""
        memory = {key: s.clone() if s.device.type == "cpu" else s.cpu() for key, s in self._storages.items()}
        return [_seen_through(view, memory[key]) for view, key in self._views]


class _TensorsBack(pickle.Unpickler):
    copies: list[torch.Tensor]

    def persistent_load(self, number: Any) -> torch.Tensor:
        return self.copies[number]


def _seen_through(view: torch.Tensor, memory: torch.UntypedStorage) -> torch.Tensor:
    plain = torch.empty(0, dtype=view.dtype).set_(memory, view.storage_offset(), view.shape, view.stride())  # type: ignore[call-overload]
    return torch.nn.Parameter(plain, view.requires_grad) if isinstance(view, torch.nn.Parameter) else plain
