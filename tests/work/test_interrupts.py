"""Ctrl-C ends a tool with one line and status 130, in every process and at every moment."""

import argparse
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.work.interrupts import run_main

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
