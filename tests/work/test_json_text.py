"""JSON from elsewhere: in every reader, whatever is wrong with a file is one short error that names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mg_llava.conversion.files import MANIFEST, read_manifest
from mg_llava.conversion.inputs import open_checkpoint
from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.records.open import open_records
from mg_llava.detection.pipeline import pipeline_config
from mg_llava.evaluation.overview import merge_results
from mg_llava.evaluation.replies import RUN_FILE, Replies
from mg_llava.evaluation.results import RESULTS_FILE
from mg_llava.evaluation.scoring.files import read_json, read_json_lines, read_predictions
from mg_llava.inspection.doctor.leakage import list_eval_pictures
from mg_llava.models.architectures import find_architecture
from mg_llava.models.weights.folders import map_folder, read_folder_config
from mg_llava.work.json_text import load_object, parse_json

HOSTILE = {
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"a": ' * 100_000,
    "nested within": b'{"a": [1, ' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
    "digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "digits of a key": b'{"' + b"9" * 5000 + b'": -' + b"1" * 4301 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "half a letter": '{"a": "é'.encode()[:-1],
    "cut": b'{"a": [1, 2',
    "empty": b"",
    "bare word": b"torch.load",
}
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "records": ("a.json", lambda path: list(open_records(path))),
    "record lines": ("a.jsonl", lambda path: list(open_records(path))),
    "boxes": ("a.json", open_box_store),
    "questions": ("a.json", read_json),
    "question lines": ("a.jsonl", read_json_lines),
    "predictions": ("a.json", read_predictions),
    "prediction lines": ("a.jsonl", read_predictions),
    "evaluation pictures": ("a.json", list_eval_pictures),
    "detector": ("a.json", lambda path: pipeline_config(str(path))),
    "config of a folder": ("config.json", lambda path: read_folder_config(path.parent)),
    "index of shards": ("model.safetensors.index.json", lambda path: map_folder(path.parent)),
    "sizes": ("config.json", lambda path: find_architecture(str(path.parent), "transformers")),
    "adapter": ("adapter_config.json", lambda path: open_checkpoint(path.parent)),
    "replies of a run": (RUN_FILE, lambda path: Replies(path.parent).identity),
}
MAY_BE_EMPTY = {"record lines", "question lines", "predictions", "prediction lines"}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_file(tmp_path: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(HOSTILE[kind])
    if kind == "empty" and reader in MAY_BE_EMPTY:
        assert read(tmp_path / name) == []
        return
    with pytest.raises(ValueError) as refused:
        read(tmp_path / name)
    assert name in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize("half", [r"\ud800", r"a \uDFFF dog", r"\udc00\ud800"])
@pytest.mark.parametrize("read", [read_json, read_json_lines, read_predictions])
def test_halves_of_surrogate_pairs_are_named(tmp_path: Path, read: Callable[[Path], Any], half: str) -> None:
    """In keys and values, where a whole pair (an emoji) is a text as any other."""
    lines = [r'{"id": 1, "text": "\ud83d\ude00"}', '{"id": 2, "text": "' + half + '"}', '{"' + half + '": 3}']
    kinds = {"a.jsonl": ("\n", "", "line 2")} if read is not read_json else {}
    if read is not read_json_lines:
        kinds["a.json"] = (",\n", "[]", "entry 2")
    for name, (separator, around, place) in kinds.items():
        for bad in lines[1:]:
            text = separator.join([lines[0], bad])
            (tmp_path / name).write_text(around[:1] + text + around[1:])
            with pytest.raises(ValueError, match=f"{name}: {place}: half of a surrogate pair"):
                read(tmp_path / name)
        (tmp_path / name).write_text(around[:1] + lines[0] + around[1:])
        assert [line["text"] for line in read(tmp_path / name)] == ["\U0001f600"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_can_be_made_again_is(tmp_path: Path, kind: str) -> None:
    (tmp_path / MANIFEST).write_bytes(HOSTILE[kind])
    assert read_manifest(tmp_path) == {}
    (tmp_path / RESULTS_FILE).write_bytes(HOSTILE[kind])
    assert merge_results(tmp_path, [])["benchmarks"] == {}
    assert json.loads((tmp_path / RESULTS_FILE).read_bytes())["benchmarks"] == {}


@pytest.mark.parametrize("weight_map", [[], 7, None, {"a": {"b": 1}}, {"a": 5}, {"a": "../x.bin"}, {"a": "/x.bin"}])
def test_maps_of_shards_name_files_of_their_folder(tmp_path: Path, weight_map: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"is damaged|lacks 1 of its 1 files"):
        map_folder(tmp_path)


@pytest.mark.parametrize("content", ["[]", "7", "null", '"a"', '{"detector": []}', '{"detector": null}', "{}"])
def test_values_of_another_kind_are_no_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json (of the box pipeline cannot be read|has no box_pipeline)"):
        pipeline_config(str(tmp_path / "x.json"))


def test_what_is_right_is_read(tmp_path: Path) -> None:
    content = {"größe": [1, 2.5, None, "\u2028"], "n": 10**4000}
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    assert load_object(tmp_path / "a.json") == content == parse_json((tmp_path / "a.json").read_text("utf-8"))
