"""Ctrl-C ends a tool with one line and status 130, in every process and at every moment."""

import argparse
import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import _terminate_process_handler

from mg_llava.work import interrupts
from mg_llava.work.interrupts import interrupt_at_termination, run_main, uninterrupted

TOOLS = sorted(Path(__file__).parents[2].glob("tools/[!_]*.py"))

WAITING = """
import sys, time
from mg_llava.work.interrupts import run_main
from mg_llava.work.pool import run_jobs

def slow(shared, number):
    if number == 1:
        print("working", flush=True)
    time.sleep(0.2)

def main():
    for _ in run_jobs(slow, range(100), None, 2):
        pass
    return 0

sys.exit(run_main(main, "go on"))
"""


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.stem for tool in TOOLS])
def test_every_tool_ends_with_one_line(tool, monkeypatch, capsys):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, interrupt)
    monkeypatch.setattr(sys, "argv", [str(tool)])
    monkeypatch.syspath_prepend(tool.parent)  # as Python does
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(("interrupted; ", "stopped; "))


def test_workers_leave_the_interrupt_to_the_first_process():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.splitlines()[-1] == "interrupted; go on"


@pytest.mark.parametrize("status", [0, 1, 2])
def test_status_passes(status, capsys):
    assert run_main(lambda: status) == status
    assert capsys.readouterr().err == ""


# -- places where others lose an interrupt ------------------------------------------------------------------------


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # Python looks for signals


class Thing:
    pass


class Deleted:
    def __del__(self) -> None:
        interrupt()


def in_a_weak_reference() -> None:
    thing = Thing()
    kept = weakref.ref(thing, interrupt)
    del thing
    assert kept() is None


def in_a_finalizer() -> None:
    Deleted()


def in_the_collector() -> None:
    def once(*_: object) -> None:  # collections that come later are not this test's
        gc.callbacks.remove(once)
        interrupt()

    gc.callbacks.append(once)
    gc.collect()


def in_a_callback_of_c() -> None:
    ctypes.CFUNCTYPE(None)(interrupt)()


def in_a_block_that_goes_on() -> None:
    with contextlib.suppress(BaseException):
        interrupt()


def in_a_block_that_exits() -> None:
    try:
        interrupt()
    except BaseException:
        sys.exit(1)


def in_a_block_that_closes() -> None:
    try:
        interrupt()
    finally:
        raise RuntimeError("unexpected pos 64 vs 0")


def in_a_block_of_c() -> None:
    """The interrupt is gone before the next error comes."""
    with contextlib.suppress(BaseException):
        interrupt()
    raise RuntimeError("unknown")


def in_torchruns_handler() -> None:
    """It takes the signal for itself, and raises an error of its own."""
    signal.signal(signal.SIGINT, _terminate_process_handler)
    interrupt()


def in_an_import(code: str) -> None:
    Path("interrupted_module.py").write_text(f"from {__name__} import interrupt\ninterrupt()\n{code}\n")
    with contextlib.suppress(ImportError):
        importlib.import_module("interrupted_module")


def in_a_failing_import() -> None:
    """The program that it started has had the interrupt."""
    in_an_import("raise ChildProcessError(-2)")


PLACES = [
    in_a_weak_reference,
    in_a_finalizer,
    in_the_collector,
    in_a_callback_of_c,
    in_a_block_that_goes_on,
    in_a_block_that_exits,
    in_a_block_that_closes,
    in_a_block_of_c,
    in_torchruns_handler,
    lambda: in_an_import(""),
    in_a_failing_import,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_interrupt_is_lost(
    place: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        place()
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(interrupts, "_has_cleanup", True)
    monkeypatch.delitem(sys.modules, "interrupted_module", raising=False)
    assert run_main(main, "go on") == 130
    assert capfd.readouterr().err == "interrupted; go on\n"


def test_threads_that_start_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ends those of a pool when it ends; for one that the pool has not noted it would wait for ever."""
    pool = ThreadPoolExecutor(1)
    wait = threading.Event.wait

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        interrupt()
        return wait(event, timeout)

    def main() -> int:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Event, "wait", interrupted)
            pool.submit(int)
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    monkeypatch.setattr(interrupts, "_has_cleanup", True)
    assert run_main(main) == 130
    assert len(pool._threads) == 1
    pool.shutdown()


@pytest.fixture
def _terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is an interrupt as well, in a command that has something to see to."""
    monkeypatch.setattr(interrupts, "_has_cleanup", True)


@pytest.mark.usefixtures("_terminated")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_be_whole_is(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []

    @uninterrupted
    def start() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        done.append(1)

    def main() -> int:
        interrupt_at_termination()
        start()
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    assert run_main(main, "go on") == 130 and done == [1]
    assert capfd.readouterr().err == "interrupted; go on\n"


@pytest.mark.usefixtures("_terminated")
def test_forked_process_can_be_ended() -> None:
    """It has the handlers of the one that it is a copy of."""
    interrupt_at_termination()
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def work() -> None:
        begun.set()
        time.sleep(600)

    process = context.Process(target=work)
    process.start()
    assert begun.wait(60)  # what comes while Python forks is lost, with any handler
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


OURS = """
import time
def main():
    try:
        interrupt()
    except KeyboardInterrupt:
        pass
    time.sleep(0.2)
    return status
"""


@pytest.mark.parametrize("status", [0, 3])
def test_what_our_code_catches_is_over(status: int, capfd: pytest.CaptureFixture[str]) -> None:
    names: dict = {"__name__": "mg_llava.commands.own", "interrupt": interrupt, "status": status}
    exec(OURS, names)
    assert run_main(names["main"]) == status
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [SystemExit(2), SystemExit("error"), ValueError("bad")])
def test_errors_pass(error: BaseException) -> None:
    def main() -> int:
        raise error

    with pytest.raises(type(error)) as raised:
        run_main(main)
    assert raised.value is error
