"""Tests that prove something: each asserts, none by the clock, and a skip is on the list."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ALLOWED_SKIPS, allowed_skips
from tests.house.source import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}


@cache
def parsed_files() -> list[tuple[str, ast.Module]]:
    """Files of tests with their trees."""
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in _paths()]


def _paths() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def asserts(function: ast.AST, helpers: set[str]) -> bool:
    """Whether a function has an assertion, expects an exception or calls a helper that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"raises", "warns", "fail"} | helpers or name.startswith("assert_"):
                return True
    return False


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def test_every_test_asserts() -> None:
    found = parsed_files()
    every = [function for _, tree in found for function in functions(tree)]
    helpers = {f.name for f in every if not f.name.startswith("test_") and asserts(f, set())}
    silent = [
        f"{path}:{function.lineno} {function.name}"
        for path, tree in found
        for function in functions(tree)
        if function.name.startswith("test_") and not asserts(function, helpers)
    ]
    assert silent == []


def cannot_fail(node: ast.Assert) -> bool:
    """Whether an assertion holds whatever is tested: ``... if ... else True``, or a constant."""
    test = node.test
    branch = isinstance(test, ast.IfExp) and any(
        isinstance(side, ast.Constant) and side.value is True for side in (test.body, test.orelse)
    )
    return branch or (isinstance(test, ast.Constant) and bool(test.value))


def test_assertions_can_fail_and_do_not_read_the_clock() -> None:
    wrong = []
    for path, tree in parsed_files():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                calls = {getattr(call.func, "attr", "") for call in ast.walk(node) if isinstance(call, ast.Call)}
                if cannot_fail(node) or calls & CLOCKS:
                    wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


def test_skips_that_are_allowed_name_tests() -> None:
    known = {f"{path}::{function.name}" for path, tree in parsed_files() for function in functions(tree)}
    assert allowed_skips() <= known, f"{ALLOWED_SKIPS.name} has names of no test: {allowed_skips() - known}"


class _Process:
    """A process of xdist that runs nothing."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.given: list[int] = []

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.given += numbers

    def shutdown(self) -> None:
        self.shutting_down = True


def test_files_stay_in_one_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share fixtures; so do those of the folder of trainings."""
    files = ("data/test_a", "end_to_end/test_b", "end_to_end/test_c", "data/test_d")
    names = [f"tests/{file}.py::test_{number}[case]" for number in range(3) for file in files]
    monkeypatch.setattr(request.config.option, "tx", ["2*popen"])
    scheduler = request.config.hook.pytest_xdist_make_scheduler(config=request.config, log=None)
    processes = [_Process("first"), _Process("second")]
    for process in processes:
        scheduler.add_node(process)
        scheduler.add_node_collection(process, names)
    scheduler.schedule()
    first, second = ({names[number].split("::")[0] for number in process.given} for process in processes)
    assert first == {"tests/data/test_a.py"} and second == {"tests/end_to_end/test_b.py", "tests/end_to_end/test_c.py"}
