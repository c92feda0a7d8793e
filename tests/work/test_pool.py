"""Jobs over processes: order, laziness, kills."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from mg_llava.work.pool import available_cores, run_batches, run_jobs, split
from tests.run import is_running


def add(shared, job):
    return shared + job


def rank_of(meeting, job):
    """The rank of a worker that waits until so many have come."""
    folder, count = meeting
    folder.joinpath(str(os.getpid())).touch()
    end = time.monotonic() + 600
    while len(list(folder.iterdir())) < count and time.monotonic() < end:
        time.sleep(0.01)
    return os.environ["LOCAL_RANK"]


def die(_, job):
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail(_, job):
    raise ValueError(f"job {job}")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_in_the_order_of_the_jobs(workers):
    assert list(run_jobs(add, range(50), 100, workers)) == list(range(100, 150))
    assert list(run_jobs(add, [], 100, workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [0, 3, 4, 9])
def test_batches_cover_all_items_in_order(workers, count):
    done = []
    batches = list(run_batches(add, ["a"], [[number] for number in range(count)], 4, workers, done.append))
    assert [len(batch) - 1 for batch in batches] == done == [4] * (count // 4) + [count % 4] * bool(count % 4)
    assert [item for batch in batches for item in batch[1:]] == [[number] for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_are_asked_for_as_they_are_done(workers):
    asked = []

    def jobs():
        for number in range(1000):
            asked.append(number)
            yield number

    results = run_jobs(add, jobs(), 0, workers)
    assert not asked
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(asked) <= 5 + 2 * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_back(workers):
    with pytest.raises(ValueError, match="job 0"):
        list(run_jobs(fail, range(5), None, workers))


def test_a_killed_worker_is_said():
    with pytest.raises(RuntimeError, match="a worker process was killed"):
        list(run_jobs(die, range(10), None, 2))


def test_each_worker_is_a_local_rank_of_its_own(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert set(run_jobs(rank_of, range(12), (tmp_path, 3), 3)) == {"0", "1", "2"}
    assert "LOCAL_RANK" not in os.environ
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert set(run_jobs(rank_of, range(4), (tmp_path, 2), 2)) == {"5"}


def leave_file(_, job):
    return tempfile.mkstemp()[1]


def test_temporary_files_of_workers_go_with_them(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = set(run_jobs(leave_file, range(6), None, 2))
    assert len(files) == 6 and all(name.startswith(str(tmp_path)) for name in files)
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == str(tmp_path)


@pytest.mark.slow
def test_workers_leave_with_their_parent(tmp_path):
    code = """
import os, tempfile, time
from mg_llava.work.pool import run_jobs
def work(_, job):
    tempfile.mkstemp()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)
list(run_jobs(work, range(2), None, 2))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    assert list(tmp_path.iterdir()) == []


def test_ranges_cover():
    assert split(10, 4) == [(0, 4), (4, 8), (8, 10)] and split(0, 4) == []
    assert available_cores() >= 1


def test_work_needs_no_torch():
    names = ("atomic", "blobs", "devices", "journal", "pool", "prefetch", "processes")
    code = "import sys; " + "; ".join(f"import mg_llava.work.{name}" for name in names)
    code += "; from mg_llava.work.processes import Processes; Processes(); print('torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout == "False\n", result.stderr
