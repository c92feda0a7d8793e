"""Programs in processes of their own without the seconds of an interpreter's imports: forked from one that has them.

The server holds modules of other packages alone, in the state in which an import leaves them; this repository's are
imported by each child. What a fork shares beyond that, the generators of random numbers, is seeded anew.
"""

import contextlib
import fcntl
import gc
import json
import multiprocessing
import os
import random
import re
import runpy
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from tests.run import ROOT, TOOLS, Ran, environment, free_port, hurry_runs

PRELOADED = (
    "deepspeed",
    "mmengine.runner",
    "open_clip",
    "peft",
    "timm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "xtuner.tools.train",
)


def start(
    program: str | Path,
    *arguments: object,
    printed: Path | None = None,
    terminal: str | None = None,
    folder: Path = ROOT,
    **variables: str,
) -> ForkServerProcess:
    """Start ``python program arguments``, or ``python -m program arguments``, in a forked process.

    Args:
        program: File of a program, or the dotted name of its module.
        arguments: Arguments of its command line.
        printed: Folder of the files ``out`` and ``err``, to which all that it prints is added.
        terminal: In place of it the path of a terminal that becomes its own; it leads a session.
        folder: Where it works, and the first place from which it imports.
        variables: Changes of its environment.
    """
    context = multiprocessing.get_context("forkserver")
    own = environment(PYTHONPATH=str(folder), **variables)
    if forkserver._forkserver._forkserver_pid is None:
        context.set_forkserver_preload(list(PRELOADED))
        with mock.patch.dict(os.environ, environment(PYTHONPATH=str(folder))):
            forkserver.ensure_running()
    streams = terminal if printed is None else str(printed)
    process = context.Process(target=_work, args=(program, [*map(str, arguments)], own, str(folder), streams))
    process.start()
    return process


def _work(program: str | Path, arguments: list[str], variables: dict[str, str], folder: str, streams: str) -> None:
    """Do in a child of the server what a new interpreter does."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    _open_terminal(streams) if streams.startswith("/dev/") else _open_files(streams)
    sys.argv[:] = [str(program), *arguments]
    sys.path[:] = [folder, *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "mg_llava", "tools")]:
        del sys.modules[name]
    hurry_runs()
    gc.freeze()  # what the server has imported: DeepSpeed collects garbage three times before it trains
    random.seed()
    if isinstance(program, str):
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(program))
        runpy.run_path(str(program), run_name="__main__")


def _open_files(folder: str) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)


def _open_terminal(path: str) -> None:
    os.setsid()
    terminal = os.open(path, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(terminal, stream)
    sys.stdin, sys.stdout, sys.stderr = (open(stream, mode) for stream, mode in enumerate("rww"))


def ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of several processes, and nothing one alone."""
    if processes == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(n), "LOCAL_RANK": str(n), **shared} for n in range(processes)]


def run(program: str | Path, *arguments: object, processes: int = 1, folder: Path = ROOT, timeout: float = 600) -> Ran:
    """Run a program; as torchrun does where there are several processes, which end when one of them fails.

    Returns:
        The first status that is not 0, and what was printed.
    """
    with tempfile.TemporaryDirectory() as printed:
        given = {"printed": Path(printed), "folder": folder}
        children = [start(program, *arguments, **given, **rank) for rank in ranks(processes)]
        end = time.monotonic() + timeout
        while any(child.exitcode is None for child in children) and time.monotonic() < end:
            if any(child.exitcode for child in children):
                break
            time.sleep(0.02)
        failed = [child.exitcode for child in children if child.exitcode]  # by itself
        for child in children:
            child.kill()
            child.join()
        status = next(iter(failed), max(abs(child.exitcode or 0) for child in children))
        out, err = ((Path(printed) / name).read_text(errors="replace") for name in ("out", "err"))
        return Ran(status, out, err)


@contextlib.contextmanager
def serving(
    program: str | Path, *arguments: object, said: str, folder: Path = ROOT
) -> Iterator[tuple[ForkServerProcess, str]]:
    """A program that serves until the block ends, and its address, which is the last word after ``said``."""
    with tempfile.TemporaryDirectory() as printed:
        out = Path(printed) / "out"
        process = start(program, *arguments, printed=Path(printed), folder=folder)
        try:
            while not (out.exists() and (found := re.search(rf"^{re.escape(said)}.*\n", out.read_text(), re.M))):
                assert process.exitcode is None, (Path(printed) / "err").read_text()
                time.sleep(0.05)
            yield process, found[0].split()[-1]
        finally:
            process.terminate()
            process.join()


def call(function: str, *arguments: Any) -> Any:
    """Call a function by its dotted name, as ``profiling``'s ``run_child`` does; all values are plain."""
    module, name = function.rsplit(".", 1)
    code = f"import json, sys, {module} as m; print(json.dumps(m.{name}(*json.loads(sys.argv[1]))))"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "call.py")
        program.write_text(code)
        done = run(program, json.dumps(arguments))
    assert done.status == 0, done.err[-4000:]
    return json.loads(done.out.splitlines()[-1])


def run_tool(name: str, *arguments: object, processes: int = 1) -> Ran:
    """Run ``tools/NAME.py``."""
    return run(TOOLS / f"{name}.py", *arguments, processes=processes)


def train(*arguments: object, processes: int = 1) -> str:
    """``xtuner train`` without its console command; returns everything printed."""
    launcher = ("--launcher", "pytorch") if processes > 1 else ()
    done = run("xtuner.tools.train", *arguments, *launcher, processes=processes)
    return done.out + done.err
