"""Journals: what was appended is found again whole, or not at all."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.work.atomic import NoRoomError
from mg_llava.work.journal import Journal, read_journal, read_journals, read_record, writer_name

VALUES = [{"line": 1, "text": "größe\n\u2028\ud800"}, [1.5, None, -0.1], "x" * 200, 7]


def written(path, values=VALUES):
    with Journal(path) as journal:
        for value in values:
            journal.append([value])
    return path


def values_of(path):
    return [record.value for record in read_journal(path)]


def test_records_come_back_in_order_and_by_their_place(tmp_path):
    path = written(tmp_path / "new" / "a.journal")
    with Journal(path) as journal:
        journal.append(["one", "two"])
        journal.append([])
        journal.close()
        journal.append(["three"])
    found = list(read_journal(path))
    assert [record.value for record in found] == [*VALUES, "one", "two", "three"]
    assert [read_record(record) for record in found] == [record.value for record in found]
    assert values_of(tmp_path / "none.journal") == [] and not (tmp_path / "none.journal").exists()


def test_a_journal_without_records_makes_no_file(tmp_path):
    with Journal(tmp_path / "a.journal"):
        pass
    assert not list(tmp_path.iterdir())


def test_wherever_a_file_ends_it_is_a_prefix_and_goes_on(tmp_path):
    data = written(tmp_path / "whole.journal").read_bytes()
    path = tmp_path / "cut.journal"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = VALUES[: data[:size].count(b"\n")]
        assert values_of(path) == whole
        written(path, ["more"])
        assert values_of(path) == [*whole, "more"]
        assert path.read_bytes().count(b"\n") == len(whole) + 1


@settings(max_examples=300)
@given(st.data())
def test_flipped_bits_and_zeros_are_never_trusted(data):
    folder = Path(os.environ.get("TMPDIR", "/tmp"), f"flips-{os.getpid()}")
    try:
        path = written(folder / "a.journal")
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            content[place : place + data.draw(st.integers(1, 64))] = bytes(len(content[place : place + 64]))
        path.write_bytes(content)
        found = [json.dumps(value) for value in values_of(path)]
        expected = [json.dumps(value) for value in VALUES]
        assert all(value in expected for value in found)
        assert found == [value for value in expected if value in found]
    finally:
        shutil.rmtree(folder)


def test_damage_is_said_and_a_changed_place_is_refused(tmp_path, caplog):
    path = written(tmp_path / "a.journal")
    second = list(read_journal(path))[1]
    content = bytearray(path.read_bytes())
    content[second.start + 12] ^= 4
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert len(values_of(path)) == len(VALUES) - 1
    assert "a.journal: 1 damaged" in caplog.text
    with pytest.raises(ValueError, match=r"a\.journal is damaged at byte"):
        read_record(second)


def test_many_writers_have_a_file_each(tmp_path):
    names = [writer_name() for _ in range(50)]
    assert len(set(names)) == 50 and names == sorted(names)
    for number, name in enumerate(names[:3]):
        written(tmp_path / f"{name}.journal", [number, -number])
    (tmp_path / "notes.txt").write_text("1")
    assert [record.value for record in read_journals(tmp_path)] == [0, 0, 1, -1, 2, -2]


def limited(code, size, *arguments):
    """Run code that may write files of ``size`` bytes, as a disk with that much room."""
    head = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_full_disk_is_an_error_and_keeps_what_was_there(tmp_path):
    code = """
import sys
from mg_llava.work.journal import Journal
journal = Journal(sys.argv[1])
for number in range(99):
    try:
        journal.append([[number, "x" * 40]])
    except OSError as error:
        print(type(error).__name__, error)
        break
print(number)
"""
    path = tmp_path / "a.journal"
    result = limited(code, 1000, path)
    message, number = result.stdout.splitlines()
    assert message.startswith("NoRoomError") and "a.journal" in message and "GB free" in message
    assert values_of(path) == [[n, "x" * 40] for n in range(int(number))] and int(number) > 10
    written(path, ["after room was made"])
    assert values_of(path)[-1] == "after room was made" and len(values_of(path)) == int(number) + 1
    assert issubclass(NoRoomError, OSError)


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    journal = Journal(tmp_path / "run" / "a.journal")
    journal.append([1])
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"a\.journal was removed while"):
        journal.append([2])


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(tmp_path):
    code = """
import sys
from mg_llava.work.journal import Journal
journal = Journal(sys.argv[1])
for number in range(10**9):
    journal.append([[number, "x" * (number % 5000)]])
    print(number, flush=True)
"""
    path, draws, total = tmp_path / "a.journal", random.Random(0), []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        time.sleep(draws.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        said = [first, *process.stdout.read().splitlines(keepends=True)]
        process.wait()
        acknowledged = sum(line.endswith("\n") for line in said)
        found = [value[0] for value in values_of(path)][len(total) :]
        assert found == list(range(len(found))) and acknowledged <= len(found) <= acknowledged + 1
        total += found
