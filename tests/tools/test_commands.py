"""One command with sub-commands."""

import os
import sys

import pytest

from mg_llava import commands
from mg_llava.commands import train
from mg_llava.engine.command import LAUNCHER
from tests.house.source import ROOT

TOOLS = {file.stem: file.read_text() for file in (ROOT / "tools").glob("[!_]*.py") if file.stem != "demo"}


def test_every_tool_is_the_door_of_a_command() -> None:
    doors = {name: text.split('open_door("')[1].split('"')[0] for name, text in TOOLS.items()}
    assert set(doors.values()) == set(commands.list_commands()) - {"train", "chat"}
    for name, text in TOOLS.items():
        file = f"mg_llava/commands/{doors[name].replace('-', '_')}.py"
        opening = f'"""The command ``mg-llava {doors[name]}``: {file}."""'
        assert text.startswith(opening) and len(text.splitlines()) <= 6


def test_every_command_says_what_it_is_for() -> None:
    for name, text in commands.list_commands().items():
        assert text.endswith((".", ":")) and len(text) > 20, name


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [([], 2, "COMMAND"), (["--help"], 0, "  predict "), (["predicct"], 2, "did you mean predict?")],
)
def test_without_a_command_the_list_is_shown(given, status, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mg-llava", *given])
    assert commands.main() == status
    out, err = capsys.readouterr()
    assert said in (err if status else out)


def test_a_command_reads_its_arguments(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mg-llava", "predict", "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 0 and "usage: mg-llava predict" in capsys.readouterr().out


def test_training_is_xtuners(monkeypatch) -> None:
    for name in ("NNODES", "NPROC_PER_NODE", "PORT", "ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = train.command("train", ["c.py", "--seed", "1"])
    assert alone[0].endswith("xtuner/tools/train.py") and alone[1:] == ["c.py", "--seed", "1"]
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    several = train.command("train", ["c.py"])
    assert several[:2] == ["torch.distributed.run", "--nnodes=1"] and "--nproc_per_node=8" in several
    assert several[-6:] == ["-m", "mg_llava.commands._script", alone[0], "c.py", "--launcher", "pytorch"]
    assert train.command("train", ["c.py", "--launcher", "slurm"]) == [alone[0], "c.py", "--launcher", "slurm"]
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("ADDR", "10.0.0.1")
    assert {"--master_addr=10.0.0.1", "--master_port=29500", "--nnodes=2"} <= set(train.command("train", []))


@pytest.mark.parametrize(("processes", "know"), [("1", False), ("2", True)])
def test_several_processes_know_what_has_started_them(processes, know, monkeypatch):
    for name, value in (("NPROC_PER_NODE", processes), ("NNODES", "1"), (LAUNCHER, "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["mg-llava train", "c.py"])
    monkeypatch.setattr(train._script, "main", lambda: 0)
    assert train.main() == 0 and os.environ.get(LAUNCHER) == (str(os.getpid()) if know else None)
