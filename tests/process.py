"""What a process that runs tests begins with, and the fixtures that all tests have."""

import gc
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope
from mmengine.utils import manager

from mg_llava.models.weights import guard
from tests import toy
from tests.run import hurry_runs

_LOAD = torch.load
hurry_runs()
# An example may wait for other processes of the tests. All runs have the same examples, so that a new one cannot fail
# where nothing was changed.
settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")
torch.set_num_threads(1)  # toy tensors are too small to share between threads


@pytest.fixture(scope="session")
def toy_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the toy encoders and LLM in their real formats."""
    return toy.write_all(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """A command takes Ctrl-C for its process, and some other signals; this one's is pytest's."""
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """A runner sets the scope in which names are looked up, for the whole process; the next test has the old one."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
    while manager._lock._is_owned():  # type: ignore[attr-defined]
        manager._lock.release()  # mmengine keeps it where a constructor fails; other threads would wait for ever


@pytest.fixture(autouse=True)
def _torch_load() -> None:
    """Reading a training config guards ``torch.load`` for the rest of the process; each test begins with torch's."""
    torch.load = torch.serialization.load = _LOAD
    guard._theirs.clear()
    sys.modules.pop("mg_llava.cpu_launch", None)  # the next config that is read guards it again


def pytest_collection_finish() -> None:
    """What imports have made stays: the collector of garbage need not look at it again, and so comes more often."""
    gc.collect()
    gc.freeze()
