"""Files of arrays: all of them as they were, or nothing."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mg_llava.work.arrays import load_arrays, save_arrays

ARRAYS = {
    "rows": np.arange(40, dtype=np.int64),
    "text": np.frombuffer(b"some ids", np.uint8),
    "none": np.zeros((0, 2)),
}


def same(found):
    return found.keys() == ARRAYS.keys() and all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in ARRAYS.items()
    )


def test_arrays_come_back(tmp_path):
    save_arrays(tmp_path / "new" / "a.npz", **ARRAYS)
    assert same(load_arrays(tmp_path / "new" / "a.npz"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]
    assert load_arrays(tmp_path / "none.npz") is None


@example(7339, 0, False)  # in the directory of the file: one array fewer
@given(st.integers(0, 10**6), st.integers(0, 7), st.booleans())
@settings(max_examples=400)
def test_a_damaged_file_is_as_it_was_or_nothing(tmp_path_factory, place, bit, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save_arrays(path, **ARRAYS)
    data = bytearray(path.read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    path.write_bytes(data)
    found = load_arrays(path)
    assert found is None or same(found)
