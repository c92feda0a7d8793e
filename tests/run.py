"""How tests run things: a tool in this process, Python or `xtuner` in others; and how they read the log of a run."""

import contextlib
import functools
import importlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
_LONGEST = 90.0
"""Seconds that something may take to come about."""


class Ran(NamedTuple):
    """What a tool gave back.

    Attributes:
        status: The status that a process would have.
        out: What it printed.
        err: What it wrote to standard error.
    """

    status: int | None
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The line for machines, which is the last one."""
        return json.loads(self.out.splitlines()[-1])


def run_tool(name: str, *arguments: object) -> Ran:
    """Call a tool in this process, which saves the seconds of an interpreter's imports."""
    file = TOOLS / f"{name}.py"
    found = re.search(r"``mg-llava ([a-z-]+)``", file.read_text())
    assert found is not None
    return _run_here(found[1], str(file), arguments)


def run_command(name: str, *arguments: object) -> Ran:
    """Call a command of ``mg-llava`` in this process."""
    return _run_here(name, name, arguments)


def _run_here(command: str, name: str, arguments: Iterable[object]) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = importlib.import_module(f"mg_llava.commands.{command.replace('-', '_')}").main()
        except SystemExit as end:
            status = end.code
    return Ran(status, out.getvalue(), err.getvalue())


def call_here(function: str, *arguments: Any) -> Any:
    """What ``profiling``'s ``run_child`` does in a new interpreter, done in this one."""
    module, name = function.rsplit(".", 1)
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(json.dumps(arguments)))))


def environment(**changes: str) -> dict[str, str]:
    """Variables of a process on CPU that imports this repository, runs this Python and takes a port of its own."""
    folder = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PORT": str(free_port()),
        **changes,
    }


def is_running(process: int) -> bool:
    """Tell whether there is such a process; one that has ended and waits for its parent does not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(holds: Callable[[], object]) -> None:
    """Wait for something, not for ever."""
    end = time.monotonic() + _LONGEST
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    assert holds()


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to connections in the meantime."""
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(15_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def run_python(*arguments: object, timeout: float = 600, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository; ``changes`` are variables of its environment."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )


def tool_command(name: str, *arguments: object, processes: int = 1) -> list[str]:
    """The command line of a tool, under torchrun where there are several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*start, str(TOOLS / f"{name}.py"), *map(str, arguments)]


def run_xtuner(*arguments: object, processes: int = 1, timeout: float = 600) -> str:
    """Run `xtuner` in the repository; returns everything printed.

    It hides the exit status of what it starts, so that callers look at what the run left.
    """
    command = [str(Path(sys.executable).parent / "xtuner"), *map(str, arguments)]
    if processes > 1:
        command += ["--launcher", "pytorch"]
    variables = environment(NPROC_PER_NODE=str(processes))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    return done.stdout + done.stderr


def train_here(*arguments: object) -> str:
    """``xtuner train`` on one CPU in this process, without the seconds that a new one needs for its imports.

    Returns:
        Everything printed, the log and the traceback of an error included.
    """
    from xtuner.tools import train

    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["train.py", *map(str, arguments)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            train.main()
        except Exception:
            traceback.print_exc()
        finally:
            forget_runs()
    return output.getvalue()


def forget_runs() -> None:
    """Drop what mmengine keeps globally of the runs of this process."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()


def hurry_runs() -> None:
    """Trainings of this process leave out what takes longer than a toy's steps and is in no result.

    A config is laid out by yapf five times, git is asked for each checkpoint, a compiler for its version, and there
    are two seconds between epochs. What the console command starts keeps all of it.
    """
    from mmengine.config import config
    from mmengine.model import utils
    from mmengine.runner import loops, runner
    from mmengine.utils import version_utils
    from torch.utils import data

    asked = functools.cache(version_utils._minimal_ext_cmd)
    config.FormatCode = lambda text, **settings: (text, True)
    version_utils._minimal_ext_cmd = lambda command: asked(tuple(command))
    runner.collect_env = functools.cache(runner.collect_env)
    loops.time = SimpleNamespace(sleep=lambda seconds: None)
    utils.mmcv_full_available = lambda: False  # looked for once for each module of a model
    # of a loader that is found as garbage the queues are closed first: its workers never hear that they may leave, and
    # five seconds are waited for each
    data._utils.MP_STATUS_CHECK_INTERVAL = 0.1


def read_log(work_dir: Path) -> list[dict]:
    """Records of the newest json log that have a loss, in order."""
    file = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))[-1]
    return [record for record in map(json.loads, file.read_text().splitlines()) if "loss" in record]


def read_losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration of the newest log."""
    return {record["step"]: record["loss"] for record in read_log(work_dir)}
