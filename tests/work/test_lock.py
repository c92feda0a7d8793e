"""One process at a time uses a folder; the lock of a process that ended does not count."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from mg_llava.work.lock import FolderInUseError, folder_lock, is_gone, process_start

HOLD = """
import sys, time
from mg_llava.work.lock import folder_lock
with folder_lock(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_folder_is_free_afterwards(tmp_path):
    for _ in range(2):
        with folder_lock(tmp_path / "new", "training"):
            assert (tmp_path / "new" / ".lock").exists()
        assert list((tmp_path / "new").iterdir()) == []


def test_second_process_is_refused(tmp_path, holder):
    with (
        pytest.raises(FolderInUseError, match=rf"another training \(process {holder.pid} on {socket.gethostname()}"),
        folder_lock(tmp_path, "training"),
    ):
        pytest.fail("two hold the folder")


def test_second_use_in_one_process_is_refused(tmp_path):
    with folder_lock(tmp_path, "training"), pytest.raises(FolderInUseError), folder_lock(tmp_path, "training"):
        pytest.fail("two hold the folder")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_lock_of_an_ended_process_does_not_count(tmp_path, holder, end):
    holder.send_signal(end)
    holder.wait()
    with folder_lock(tmp_path, "training"):
        found = json.loads((tmp_path / ".lock").read_text())
        assert found["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"pid": 1}', "[" * 5000, "\0" * 64, "9" * 4400])
def test_any_content_without_a_lock_is_stale(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with folder_lock(tmp_path, "training"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("holder", "gone"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname(), "started": process_start(os.getpid())}, False),
        ({"pid": os.getpid(), "host": socket.gethostname(), "started": 1}, True),  # another process had this id
        ({"pid": 2**22 + 1, "host": socket.gethostname(), "started": 5}, True),
        ({"pid": 2**22 + 1, "host": "elsewhere", "started": 5}, False),
        ({"pid": "no number", "host": socket.gethostname(), "started": 5}, True),  # written by another program
        ({"pid": [1], "host": socket.gethostname(), "started": process_start(os.getpid())}, True),
        ({"pid": os.getpid(), "host": socket.gethostname()}, True),
    ],
)
def test_file_system_without_locks(tmp_path, monkeypatch, holder, gone):
    """There the file's word counts: a process of this machine can be looked for, one of another machine cannot."""

    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert is_gone(holder) == gone
    (tmp_path / ".lock").write_text(json.dumps(holder))
    if gone:
        with folder_lock(tmp_path, "training"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(FolderInUseError, match=r"If that process has ended, remove .*\.lock"):
            folder_lock(tmp_path, "training").__enter__()
