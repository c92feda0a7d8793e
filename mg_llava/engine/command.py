"""``xtuner train`` as it was called: what has to be looked at before XTuner itself acts on it."""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mg_llava.work.interrupts import interrupt_safely
from mg_llava.work.lock import process_fields

SCRIPTS = ("train.py", "test.py")
LAUNCHER = "MG_LLAVA_LAUNCHER"
"""Environment variable with the number of the process that has started several of a training."""


def is_training_command() -> bool:
    """Tell whether this process is XTuner's ``train`` script."""
    return Path(sys.argv[0]).parts[-3:] == ("xtuner", "tools", "train.py")


@functools.lru_cache(maxsize=1)
def command_line() -> Any:
    """What was given to ``xtuner train``, as XTuner reads it."""
    from xtuner.tools.train import parse_args

    return parse_args()


def prepare_command() -> None:
    """End with ``xtuner`` and at Ctrl-C, and refuse a checkpoint that cannot be resumed, in a process that it started.

    It has to run while the config is read: right after that XTuner loads the checkpoint to look up its seed.

    Raises:
        FileNotFoundError: There is no checkpoint at ``--resume``.
        CheckpointError: It is damaged or of another kind.
        ValueError: It is DeepSpeed's and ``--deepspeed`` is not given, or the other way round.
    """
    if Path(sys.argv[0]).parts[-3:-1] != ("xtuner", "tools") or Path(sys.argv[0]).name not in SCRIPTS:
        return
    interrupt_safely()
    end_with_launcher()
    if is_training_command() and command_line().resume and "://" not in command_line().resume:
        check_resumed_file(command_line().resume, command_line().deepspeed)


def check_resumed_file(path: str, deepspeed: str | None) -> None:
    """Whether a checkpoint is whole and of the kind that this command writes; errors as above."""
    from mg_llava.models.weights.checkpoint import newest_checkpoint, open_training_checkpoint

    if Path(path).is_dir() and (newest := newest_checkpoint(Path(path))) != Path(path):
        raise ValueError(f"{path} is a work directory; give its newest checkpoint: --resume {newest}")
    checkpoint = open_training_checkpoint(path)
    if checkpoint.kind.startswith("DeepSpeed") != bool(deepspeed):
        fix = "add --deepspeed with the setting it was trained with" if not deepspeed else "leave out --deepspeed"
        given = "given" if deepspeed else "not given"
        raise ValueError(
            f"{path} is of the kind {checkpoint.kind!r}, and --deepspeed is {given}; {fix}, or start "
            "a new run from its weights: --cfg-options model.pretrained_pth=..."
        )


def end_with_launcher() -> None:
    """End this process, and ``torchrun`` in between, when the ``xtuner`` that started them ends in any way.

    ``xtuner`` waits for its child and hands no signals on: without this a training outlives a SIGTERM to it. A process
    of ``mg-llava train`` with several ends with their common parent.
    """
    own = os.environ.pop(LAUNCHER, "")
    chain = [int(own)] if own else launcher_chain(os.getpid())
    if not chain or not hasattr(os, "pidfd_open"):
        return

    def end() -> None:
        for process in [*chain[-2::-1], os.getpid()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def wait(launcher: int) -> None:
        select.select([launcher], [], [])
        end()

    try:
        launcher = os.pidfd_open(chain[-1])
    except ProcessLookupError:  # it ended just now
        end()
    except OSError:  # an old kernel
        return
    else:
        threading.Thread(target=wait, args=(launcher,), name="launcher", daemon=True).start()


def launcher_chain(process: int) -> list[int]:
    """Parents of a process from its own up to the first ``xtuner``; empty where there is none among three."""
    chain: list[int] = []
    for _ in range(3):
        found = _parent(process)
        if found is None or found <= 1:
            return []
        process = found
        chain.append(process)
        if any(Path(word).name == "xtuner" for word in _words(process)[:2]):
            return chain
    return []


def _parent(process: int) -> int | None:
    fields = process_fields(process)
    return int(fields[1]) if fields else None


def _words(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return []
