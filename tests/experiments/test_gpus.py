"""GPUs: which there are, how many a step has, and errors about too few."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mg_llava.experiments import gpus
from mg_llava.experiments.gpus import GpuSlots, find_gpus, processes_of, share_gpus


@pytest.fixture(autouse=True)
def _no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a driver, on which nothing may import torch."""
    for name in ("CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("0,1", ["0", "1"]),
        ("3, GPU-a1,MIG-b2", ["3", "GPU-a1", "MIG-b2"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("1,1", ["1"]),
        ("NoDevFiles", []),
    ],
)
def test_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, given: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert find_gpus() == names


def test_torch_is_asked_only_where_there_is_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_gpus() == [] and share_gpus(None) is None
    (tmp_path / "driver").touch()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 3)))
    assert find_gpus() == ["0", "1", "2"]


def test_how_many_a_step_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")

    def shared(each: int | None) -> tuple[int, int]:
        slots = share_gpus(each)
        assert slots is not None
        return slots.each, slots.steps

    assert shared(None) == (1, 5) and shared(2) == (2, 2) and processes_of(None) == "1"
    monkeypatch.setenv("NPROC_PER_NODE", "5")
    assert shared(None) == (5, 1) and shared(1) == (1, 5) and (processes_of(None), processes_of(1)) == ("5", "1")


@pytest.mark.parametrize(
    ("given", "variable", "each", "message"),
    [
        ("0,1", None, 3, "--gpus-per-run is 3, and there are 2 GPUs: 0, 1; give a number from 1"),
        ("0,1", "4", None, "NPROC_PER_NODE is 4, and there are 2 GPUs: 0, 1"),
        ("0,1", "gpu", None, "NPROC_PER_NODE is gpu, and there are 2 GPUs"),
        ("", None, 1, "--gpus-per-run is 1, and there is no GPU; .*none on the CPU"),
    ],
)
def test_more_than_there_are(
    monkeypatch: pytest.MonkeyPatch, given: str, variable: str | None, each: int | None, message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    if variable is not None:
        monkeypatch.setenv("NPROC_PER_NODE", variable)
    with pytest.raises(ValueError, match=message):
        share_gpus(each)


def test_what_is_given_back_is_given_again() -> None:
    slots = GpuSlots(["0", "1", "2"], 1)
    told = [slots.take(Path(name)) for name in "abc"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["0", "1", "2"]
    assert len({one["PORT"] for one in told}) == 3
    with pytest.raises(RuntimeError, match="1 GPUs are needed for d, of 3 are free"):
        slots.take(Path("d"))
    slots.give_back(Path("b"))
    assert slots.take(Path("d"))["CUDA_VISIBLE_DEVICES"] == "1"
