"""How tests are spread over processes, and which of them may be skipped; their fixtures are in ``process.py``."""

import os
import signal
import warnings

# for this process, for the workers of xdist and for every process that a test starts
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import pytest

# processes ignore what their parent ignores, such as a shell's for its background
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"
ONE_PROCESS = ("tests/end_to_end/",)
"""Folders whose tests share runs of a session: one process of xdist gets them all."""
FIRST = (
    "tests/end_to_end/",
    "tests/configs/test_leaves_train.py",
    "tests/detection/test_engines.py",
    "tests/models/test_compilation.py",
    "tests/tools/test_faults.py",
    "tests/engine/test_launch.py",
    "tests/profiling/test_performance.py",
    "tests/contract/test_readme.py",
    "tests/profiling/test_compare.py",
    "tests/configs/test_configs.py",
    "tests/tools/test_commands.py",
)
"""Groups that take longest, the longest first, so that no process is left alone with one of them at the end."""
_refused_skips: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """The process that only spreads tests over others imports nothing for them."""
    if not getattr(config.option, "numprocesses", None):
        with warnings.catch_warnings():  # of the packages that are imported
            warnings.simplefilter("ignore")
            config.pluginmanager.import_plugin("tests.process")


# -- processes ------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first."""
    slow: dict[str, int] = {}
    for item in items:
        group = _group(item.nodeid)
        slow[group] = slow.get(group, 0) + (item.get_closest_marker("slow") is not None)
    places = {group: place for place, group in enumerate(FIRST)}
    items.sort(key=lambda item: (places.get(_group(item.nodeid), len(FIRST)), -slow[_group(item.nodeid)]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together, because they share fixtures; ``--dist loadgroup`` needs an older pytest."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def _group(nodeid: str) -> str:
    file = nodeid.split("::", 1)[0]
    return next((folder for folder in ONE_PROCESS if file.startswith(folder)), file)


# -- skips ----------------------------------------------------------------------------------------------------------


def allowed_skips() -> set[str]:
    """Tests that may be skipped, as ``file::function``."""
    lines = (line.split("#", 1)[0].strip() for line in ALLOWED_SKIPS.read_text().splitlines())
    return {line for line in lines if line}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With xdist this runs in the process that collects the reports of the others."""
    name = report.nodeid.split("[", 1)[0]
    if report.skipped and not hasattr(report, "wasxfail") and name not in allowed_skips():
        _refused_skips.append(f"{report.nodeid}: {report.longrepr[2] if report.longrepr else ''}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """A file that skips itself as a whole would not be seen by the other hooks."""
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"{report.nodeid}: mark the tests, not the file, as skipped"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _refused_skips and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _refused_skips:
        terminalreporter.section("skipped, but not in tests/allowed_skips.txt: this fails the run", red=True)
        for line in _refused_skips:
            terminalreporter.line(line)
