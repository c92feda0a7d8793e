"""Blobs: what was added is found again whole, or not at all."""

import os
import pickle
import random
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mg_llava.work.atomic import NoRoomError
from mg_llava.work.blobs import BlobReader, BlobWriter, checksum, entry_dtype

FIELDS = (("width", "<i4"), ("height", "<i4"))


def content(seed):
    return np.random.default_rng(seed).integers(0, 256, 3 + 7 * seed % 50, dtype=np.uint8)


def fill(folder, numbers, **options):
    writer = BlobWriter(folder, ".bin", FIELDS, **options)
    for number in numbers:
        writer.add(number, content(number), number, -number)
    writer.close()
    return writer


def read_all(folder):
    """Whole contents by key, with their fields."""
    reader = BlobReader(folder, ".bin", FIELDS)
    found = {}
    for number, entry in enumerate(reader.entries):
        data = reader.read(number)
        if data is not None:
            found[int(entry["key"])] = (data.tobytes(), int(entry["width"]), int(entry["height"]))
    return found


def expected(numbers):
    return {number: (content(number).tobytes(), number, -number) for number in numbers}


def test_contents_come_back(tmp_path):
    writer = fill(tmp_path / "new", range(20))
    assert writer.written == sum(len(content(number)) for number in range(20))
    fill(tmp_path / "new", range(20, 30))
    assert read_all(tmp_path / "new") == expected(range(30))
    reader = pickle.loads(pickle.dumps(BlobReader(tmp_path / "new", ".bin", FIELDS)))
    assert reader.peek(3, 2).tobytes() == content(3)[:2].tobytes()
    assert reader.path_of(0) != reader.path_of(29) and reader.path_of(0).suffix == ".bin"
    assert read_all(tmp_path / "none") == {}


def test_files_of_a_limited_size(tmp_path):
    fill(tmp_path, range(1, 30), limit=100)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.bin")]
    assert len(sizes) > 3 and max(sizes) < 100 + 60
    assert read_all(tmp_path) == expected(range(1, 30))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".bin", ".index"]),
    st.integers(0, 10**6),
    st.integers(0, 7),
    st.sampled_from("flip cut zero".split()),
)
def test_damage_is_never_trusted(tmp_path_factory, suffix, place, bit, kind):
    folder = tmp_path_factory.mktemp("blobs")
    fill(folder, range(1, 9))
    (path,) = folder.glob(f"*{suffix}")
    data = bytearray(path.read_bytes())
    place %= len(data)
    if kind == "flip":
        data[place] ^= 1 << bit
    elif kind == "cut":
        del data[place:]
    else:
        data[place:] = bytes(len(data) - place)
    path.write_bytes(data)
    found, right = read_all(folder), expected(range(1, 9))
    assert all(right[key] == value for key, value in found.items())
    if kind == "flip":
        assert len(found) == 7
    fill(folder, [key for key in right if key not in found])
    assert read_all(folder) == right


@given(st.lists(st.integers(0, 255), max_size=40), st.integers(0, 2**64 - 1), st.integers(0, 40 * 8))
def test_a_checksum_sees_every_flipped_bit(data, key, bit):
    array = np.array(data, dtype=np.uint8)
    assert checksum(array, key) != checksum(array, (key + 1) % 2**64)
    assert checksum(np.append(array, np.uint8(0)), key) != checksum(array, key)
    if bit < 8 * len(array):
        flipped = array.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        assert checksum(flipped, key) != checksum(array, key)


def test_a_full_disk_is_an_error_and_the_next_content_is_not_misplaced(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = BlobWriter(tmp_path, ".bin", FIELDS)
    writer.add(0, content(0), 0, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(NoRoomError, match=r"\.bin"):
            writer.add(1, np.ones(500, np.uint8), 1, -1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.add(2, content(2), 2, -2)
    writer.close()
    assert read_all(tmp_path) == expected([0, 2])


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    writer = BlobWriter(tmp_path / "cache", ".bin", FIELDS)
    writer.add(1, content(1), 1, -1)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="was removed while"):
        writer.add(2, content(2), 2, -2)
    writer = BlobWriter(tmp_path / "cache", ".bin", FIELDS)
    writer.add(1, content(1), 1, -1)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="was removed while"):
        writer.close()


@pytest.mark.slow
def test_kills_leave_whole_contents(tmp_path):
    code = """
import sys, numpy as np
from mg_llava.work.blobs import BlobWriter
writer = BlobWriter(sys.argv[1], ".bin", (("width", "<i4"), ("height", "<i4")))
for number in range(10**6):
    writer.add(number, np.full(number % 3000, number % 256, np.uint8), number, -number)
    print(number, flush=True)
"""
    draws = random.Random(1)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
        for _ in range(draws.randint(1, 2000)):
            process.stdout.readline()
        os.kill(process.pid, 9)
        acknowledged = process.stdout.read().splitlines(keepends=True)
        process.wait()
        last = [int(line) for line in acknowledged if line.endswith("\n")]
        found = read_all(folder)
        assert all(value == (bytes([key % 256]) * (key % 3000), key, -key) for key, value in found.items())
        assert not last or set(found) >= set(range(last[-1] + 1))


def test_entries_fill_words():
    with pytest.raises(AssertionError, match="eight bytes"):
        entry_dtype([("width", "<i4")])
