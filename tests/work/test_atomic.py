"""A file or folder that is replaced is the old one or the new one, whatever ends the writer."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.work import atomic

OLD = "the old content\n"

WRITERS = {
    "bytes": lambda path: atomic.write_bytes(path, b"x" * 100_000),
    "text": lambda path: atomic.write_text(path, "x" * 100_000),
    "json": lambda path: atomic.write_json(path, ["x" * 100_000]),
    "lines": lambda path: _write_lines(path),
}


def _write_lines(path: Path) -> None:
    with atomic.replacing(path, "w") as file:
        for _ in range(1000):
            file.write("x" * 100 + "\n")


@pytest.fixture
def small_files():
    """No file may grow beyond 10 kB, as on a full disk."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, old)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_replaces(tmp_path, kind):
    path = tmp_path / "new" / "file"
    WRITERS[kind](path)
    first = path.read_bytes()
    path.write_text(OLD)
    WRITERS[kind](path)
    assert path.read_bytes() == first and len(first) >= 100_000
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_keeps_the_old_file(tmp_path, small_files, kind):
    path = tmp_path / "file"
    path.write_text(OLD)
    with pytest.raises(atomic.NoRoomError, match=f"full while writing {path} .*unchanged") as caught:
        WRITERS[kind](path)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == OLD
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError])
def test_error_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text(OLD)
    with pytest.raises(error), atomic.replacing(path) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == OLD
    assert names(tmp_path) == ["file"]


def test_killed_writer_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text(OLD)
    script = (
        "import os, sys; from mg_llava.work.atomic import replacing\n"
        "with replacing(sys.argv[1], 'w') as file:\n"
        "    file.write('x' * 100_000); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == OLD
    atomic.write_text(path, "new")
    assert path.read_text() == "new"


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileExistsError):
        (tmp_path / "file").write_text(OLD)
        atomic.write_text(tmp_path / "file" / "below", "new")


def test_json_is_read_back(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"name": "Zürich 中", "values": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Zürich 中", "values": [1, None]} and "Zürich" in text and text.endswith("\n")


def test_folder_is_replaced(tmp_path):
    path = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic.replacing_folder(path) as part:
            (part / "inside").mkdir()
            (part / "inside" / content).write_text(content)
    assert names(path / "inside") == ["two"]
    assert names(tmp_path) == ["folder"]


def test_failed_folder_keeps_the_old_one(tmp_path, small_files):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text(OLD)
    with pytest.raises(atomic.NoRoomError), atomic.replacing_folder(path) as part:
        (part / "file").write_bytes(b"x" * 100_000)
    assert (path / "file").read_text() == OLD
    assert names(tmp_path) == ["folder"]


def test_failed_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text(OLD)
    replace = os.replace

    def refusing(source, target):
        if str(source).endswith(".part"):
            raise PermissionError(errno.EACCES, "refused")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", refusing)
    with pytest.raises(PermissionError), atomic.replacing_folder(path) as part:
        (part / "file").write_text("new")
    assert (path / "file").read_text() == OLD
    assert names(tmp_path) == ["folder"]


def test_settle_moves_a_file_over_a_file(tmp_path):
    (tmp_path / "part").write_text("new")
    (tmp_path / "file").write_text(OLD)
    atomic.settle(tmp_path / "part", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_remove_takes_files_folders_and_nothing(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text(OLD)
    for name in ("folder", "file", "absent"):
        atomic.remove(tmp_path / name)
    assert names(tmp_path) == []


def test_text_between_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nCeilings stay.\n")
    for _ in range(2):
        atomic.write_between_marks(page, "new", "toy")
    assert "old" not in page.read_text() and page.read_text().count("new") == 1
    assert page.read_text().endswith("Ceilings stay.\n")
