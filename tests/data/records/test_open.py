"""Record files: all formats give the same records, faults are named, places hold for random access and workers."""

import builtins
import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.records import json_stream
from mg_llava.data.records.open import fingerprint, open_records
from mg_llava.data.records.schema import RecordError

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.text(), st.floats(-1e9, 1e9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
layouts = st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])


@given(st.lists(json_values, max_size=8), layouts, st.integers(1, 40), st.booleans())
@settings(max_examples=200)
def test_a_list_in_any_layout_and_any_chunks(tmp_path_factory, values, layout, chunk, with_lines):
    """Chunks end anywhere: inside letters of several bytes, numbers, escapes and separators."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / ("any.jsonl" if with_lines else "any.json")
    if with_lines:
        lines = [json.dumps(value, ensure_ascii=layout.get("ensure_ascii", True)) for value in values]
        path.write_text("\n \n".join(lines), "utf-8", errors="surrogatepass")
    else:
        path.write_text(f" {json.dumps(values, **layout)}\n", "utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        records = open_records(path)
        assert list(records) == values
    assert [records[i] for i in range(len(records))] == values and records[1:] == values[1:]
    assert list(pickle.loads(pickle.dumps(records))) == values


def test_broken_files(tmp_path):
    path = tmp_path / "train.json"
    for text, message in [
        ('[{"id": 1, "conver', r"train\.json is truncated or not JSON: line 1, record 0: Unterminated"),
        ('[{"id": 1},\n\n {"id": 2}', r"line 3, record 2: the file ends"),
        ('[{"id": 1},\n {"id": tru}, ' + '{"id": 3}, ' * 9 + "]", r"line 2, record 1: Expecting value"),
        ('[{"id": 1}\n {"id": 2}]', r"line 2, record 1: found .\{., .,. or .\]. is needed"),
        ('{"id": 1}', "a list of records is needed"),
        ('{"id": 1}\n{"id": 2}', r"must end in \.jsonl"),
        ('[{"id": 1}]\n[]', "found more after the end"),
        ("", "a list of records is needed"),
    ]:
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            len(open_records(path))
    path.write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(RecordError, match=r"train\.json is truncated or not JSON: .*not UTF-8"):
        len(open_records(path))
    lines = tmp_path / "train.jsonl"
    lines.write_text('{"id": 1}\n\n{"id": 2}\n{"id": ')
    with pytest.raises(RecordError, match=r"train\.jsonl.*line 4, record 2"):
        list(open_records(lines))
    lines.write_text('{"id": 1}\n\n{"id": "a\u2028b"}\n', "utf-8")
    assert list(open_records(lines)) == [{"id": 1}, {"id": "a\u2028b"}]
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist; check data_path"):
        open_records(tmp_path / "none.json")


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"id": 1}, {"id": 2}]')
    records = open_records(path)
    assert records[1] == {"id": 2}
    path.write_text('[{"id": 100}]')
    with pytest.raises(RecordError, match=r"train\.json, record 1: .* was changed while it was in use"):
        records[1]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "train.json"
    with path.open("w") as file:
        file.write("[" + ",".join(f'{{"id": {i}, "text": "{"a" * 1000}"}}' for i in range(20000)) + "]")
    tracemalloc.start()
    records = open_records(path)
    assert len(records) == 20000 and records[19999]["id"] == 19999
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 3
    tracemalloc.stop()


def test_places_can_be_given(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"id": 1}, {"id": 2}]')
    first, second = open_records(path), open_records(path)
    second.places = np.array(first.places)
    path.write_text('?{"id": 1}, {"id": 3}?')
    assert second[1] == {"id": 3}


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "2", "image": None, "conversations": [{"from": "human", "value": "é"}] * 2},
    ]
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 3), path, row_group_size=2)
    records = open_records(path)
    expected = [rows[0], {key: value for key, value in rows[1].items() if value is not None}] * 3
    assert list(records) == expected == [records[i] for i in range(6)]
    assert records[-1] == expected[-1] and pickle.loads(pickle.dumps(records))[2:4] == expected[2:4]
    path.write_bytes(b"PAR1")
    with pytest.raises(RecordError, match=r"train\.parquet is truncated or not Parquet"):
        open_records(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'mg_llava\[parquet\]', or convert it to \.jsonl"):
        open_records(tmp_path / "train.parquet")


def test_fingerprint_is_of_the_content(tmp_path):
    for name, text in {"a": "1", "b": "1", "c": "2"}.items():
        (tmp_path / name).write_text(text)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_threads_that_open_the_file_at_once(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(300)))
    records = open_records(path)
    assert len(records) == 300
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            fresh = pickle.loads(pickle.dumps(records))
            assert [item["id"] for item in pool.map(fresh.__getitem__, range(300))] == list(range(300))


HOSTILE = {
    "nested": ("[" * 200_000, "nested too deeply"),
    "digits": ("9" * 5000, "too many digits"),
    "latin": ('"\udcff"', "not UTF-8|utf-8"),
    "cut": ('{"id": ', "Expecting"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_values_are_one_error_with_file_and_record(tmp_path, kind):
    text, message = HOSTILE[kind]
    value = text.encode("utf-8", "surrogateescape")
    good = b'{"id": 1}'
    (tmp_path / "a.json").write_bytes(b"[" + good + b",\n" + value + b"]")
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + value + b"\n" + good)
    for name, place in (("a.json", "record 1"), ("a.jsonl", "line 2")):
        with pytest.raises(RecordError, match=message) as error:
            list(open_records(tmp_path / name))
        assert name in str(error.value) and place in str(error.value) and len(str(error.value)) < 500
        with pytest.raises(RecordError, match=message):
            list(json_stream.stream_json(tmp_path / name))
    lines = open_records(tmp_path / "a.jsonl")
    assert len(lines) == 3 and lines[0] == lines[2] == {"id": 1}
    with pytest.raises(RecordError, match=r"a\.jsonl, record 1"):
        lines[1]


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path):
    for name, text in (("a.json", '[{"id": 1}, {"id": 2}]'), ("a.jsonl", '{"id": 1}\n\n{"id": 2}\n')):
        (tmp_path / name).write_text(text, "utf-8-sig")
        records = open_records(tmp_path / name)
        assert records[0] == {"id": 1} and list(records) == [{"id": 1}, {"id": 2}] == [records[0], records[1]]
        assert [entry.value for entry in json_stream.stream_json(tmp_path / name)] == list(records)
