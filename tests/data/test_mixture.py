"""Several sources as one data set: which sample an index gives, shares, policies and counts of each source."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.collate import collate
from mg_llava.data.config import resolve_paths
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.mixture import MixtureDataset, sources_of
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import RecordError, make_box_record
from mg_llava.data.samplers import LengthGroupedSampler
from mg_llava.engine.hooks import DataReportHook
from tests.data.conftest import turns_of
from tests.settings import grouped


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of ten numbers; sources write their records beside them."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "images").mkdir()
    for number in range(10):
        pixels = np.full((20, 30, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return folder


def write_source(root, name, kinds, boxes=2, suffix=".json"):
    """One record per letter of ``kinds``: (t)ext, (p)icture, (d)ouble picture; ids are integers and strings."""
    records, box_records = [], {}
    for number, kind in enumerate(kinds):
        count = "tpd".index(kind)
        record_id = number if number % 2 else str(number)
        text = "<image> " * count + f"{name} {number}?"
        record = {"id": record_id, "conversations": turns_of(text, "Three digits.")}
        if count:
            names = [f"{(number + k) % 10}.png" for k in range(count)]
            record["image"] = names[0] if count == 1 else names
        records.append(record)
        for k in range(count):
            key = str(number) if count == 1 else f"{number}#{k}"
            rows = [[i, i, i + 9, i + 9] for i in range(0, 9 * boxes, 9)]
            box_records[key] = {"boxes": rows, "scores": [0.5] * boxes, "labels": ["x"] * boxes}
    path = root / f"{name}{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    else:
        import pyarrow.parquet

        # A column has one type.
        rows = [
            {
                **record,
                "id": str(record["id"]),
                "image": [record["image"]] if isinstance(record.get("image"), str) else record.get("image"),
            }
            for record in records
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (root / f"{name}_boxes.json").write_text(json.dumps(box_records))
    return {"data_path": path.name, "image_folder": "images", "box_path": f"{name}_boxes.json"}


def mix(root, tokenizer, sources, **changes):
    defaults = dict(data_root=root, tokenizer=tokenizer, template="vicuna", picture_processor=PictureProcessor(16))
    return MixtureDataset([grouped(**source) for source in sources], **grouped(**{**defaults, **changes}))


def same(first, second):
    if first["id"] != second["id"] or first["input_ids"] != second["input_ids"]:
        return False
    return all(torch.equal(a, b) for key in ("images", "boxes") for a, b in zip(first[key], second[key], strict=True))


kinds = st.text("tpd", min_size=1, max_size=6)
shares = st.sampled_from([{}, {"repeat": 2}, {"repeat": 1.5}, {"repeat": 0.5}, {"max_dataset_length": 2}])


@given(st.lists(st.tuples(kinds, shares), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture(root, tokenizer, parts, seed):
    """Text alone and pictures in any position; every sample is that of its source; all depends on the seed alone."""
    for number, (letters, _) in enumerate(parts):
        write_source(root, f"s{number}", letters)
    sources = [
        {"data_path": f"s{n}.json", "image_folder": "images", "box_path": f"s{n}_boxes.json", **share}
        for n, (_, share) in enumerate(parts)
    ]
    if any(round(share.get("repeat", 1) * len(letters)) == 0 for letters, share in parts):
        with pytest.raises(ValueError, match=r"repeat is 0\.5, which leaves none of 1 records"):
            mix(root, tokenizer, sources, seed=seed)
        return
    mixture, again = (mix(root, tokenizer, sources, seed=seed) for _ in range(2))
    assert len(mixture) == sum(map(len, mixture.sources)) == len(mixture.modality_length)
    for (letters, share), source in zip(parts, mixture.sources, strict=True):
        count = min(len(letters), share.get("max_dataset_length", 9))
        repeat = share.get("repeat", 1)
        rows = [source.row(i) for i in range(len(source))]
        assert len(rows) == int(repeat) * count + round((repeat - int(repeat)) * count)
        assert len(set(rows)) == min(count, len(rows)) and max(map(rows.count, rows)) <= -(-repeat // 1)
    places = [mixture.locate(i) for i in range(len(mixture))]
    assert places == [(n, i) for n, source in enumerate(mixture.sources) for i in range(len(source))]
    for index, (number, place) in enumerate(places):
        item = mixture[index]
        kind = parts[number][0][mixture.sources[number].row(place)]
        assert len(item["images"]) == len(item["boxes"]) == "tpd".index(kind)
        assert item["id"] == str(mixture.sources[number].row(place))
        assert all(len(boxes) for boxes in item["boxes"])
        assert (mixture.modality_length[index] > 0) == bool(item["images"])
        assert same(item, mixture.sources[number][place]) and same(item, again[index])
    assert sorted(LengthGroupedSampler(mixture, 1, seed=0)) == list(range(len(mixture)))


def test_formats_give_the_same_samples(root, tokenizer):
    pytest.importorskip("pyarrow")
    sources = [write_source(root, "same", "tpdp", suffix=suffix) for suffix in (".json", ".jsonl", ".parquet")]
    mixture = mix(root, tokenizer, [{**source, "name": str(n)} for n, source in enumerate(sources)])
    assert all(same(mixture[i], mixture[i + 4]) and same(mixture[i], mixture[i + 8]) for i in range(4))


def test_fractions_are_drawn_with_the_seed(root, tokenizer):
    source = write_source(root, "many", "t" * 40)
    half = [mix(root, tokenizer, [{**source, "repeat": 0.5}], seed=seed).sources[0] for seed in (0, 0, 1)]
    rows = [[part.row(i) for i in range(len(part))] for part in half]
    assert rows[0] == rows[1] != rows[2] and rows[0] == sorted(rows[0]) and len(rows[0]) == 20
    with pytest.raises(ValueError, match="repeat is 0; it must be positive"):
        mix(root, tokenizer, [{**source, "repeat": 0}])


def test_settings_of_a_source_win_and_what_is_shared_is_built_once(root, tokenizer):
    first, second = write_source(root, "a", "pp"), write_source(root, "b", "tp")
    second["box_path"] = first["box_path"]
    wide = {**first, "name": "wide", "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": 24}}
    mixture = mix(root, tokenizer, [first, second, wide])
    assert mixture.sources[0].box_store is mixture.sources[1].box_store
    assert mixture.sources[0].tokenizer is mixture.sources[1].tokenizer
    assert [source.name for source in mixture.sources] == ["a", "b", "wide"]
    assert [mixture[i]["images"][0].shape[-1] for i in (0, 4)] == [16, 24]
    assert mixture.sources[0].data_path == str(root / "a.json")


def test_sources_of(root, tokenizer):
    source = write_source(root, "a", "pp")
    mixture = mix(root, tokenizer, [source, {**source, "name": "again"}])
    single = LLaVADataset(root / "a.json", root / "images", tokenizer, "vicuna", PictureProcessor(16))
    nested = ConcatDataset([single, ConcatDataset([mixture, single])])
    assert sources_of(single) == [single] and sources_of(mixture) == mixture.sources
    assert sources_of(nested) == [single, *mixture.sources, single]
    with pytest.raises(TypeError, match="found a list"):
        sources_of([1])
    prebuilt = MixtureDataset([single, mixture.sources[1]])
    assert same(prebuilt[2], mixture[0]) and len(prebuilt) == 4


def test_faults_of_a_mixture(root, tokenizer):
    source = write_source(root, "a", "pp")
    with pytest.raises(ValueError, match="the mixture has no sources"):
        MixtureDataset([])
    with pytest.raises(ValueError, match="several sources are called a; give each a name"):
        mix(root, tokenizer, [source, source])
    with pytest.raises(ValueError, match="no setting bach_size"):
        mix(root, tokenizer, [source], bach_size=3)
    mixture = mix(root, tokenizer, [source])
    assert same(mixture[-1], mixture[1])
    for index in (2, -3):
        with pytest.raises(IndexError, match="not among the 2 samples"):
            mixture[index]
    records = json.loads((root / "a.json").read_text())
    (root / "odd.json").write_text(json.dumps([*records, {"id": "strange", "videos": "a.mp4", "conversations": []}]))
    with pytest.raises(RecordError, match=r"odd\.json, record 2 \(id 'strange'\): unknown kind"):
        mix(root, tokenizer, [source, {**source, "data_path": "odd.json"}])


def test_the_registry_builds_a_mixture(root, tokenizer):
    tokenizer.save_pretrained(root / "llm")
    mixture = DATASETS.build(
        dict(
            type="mg_llava.MixtureDataset",
            sources=[write_source(root, "a", "tp"), write_source(root, "b", "dp")],
            data_root=str(root),
            tokenizer=dict(
                type="transformers.AutoTokenizer.from_pretrained", pretrained_model_name_or_path=str(root / "llm")
            ),
            template="vicuna",
            picture_processor=dict(type="mg_llava.PictureProcessor", image_size=16),
            boxes=dict(box_augmentation=dict(type="mg_llava.BoxAugmentation", dropout=0.5)),
        )
    )
    assert mixture.locate(2) == (1, 0) and len(mixture[2]["images"]) == 2


def test_paths_are_relative_to_the_root(tmp_path):
    settings = resolve_paths(dict(data_root="r", data_path="a.json", image_folder="/i", box_path=None, seed=1))
    assert settings == dict(data_root=None, data_path="r/a.json", image_folder="/i", box_path=None, seed=1)
    assert resolve_paths(dict(data_path="a.json"))["data_path"] == "a.json"


def test_augmentation_sees_original_boxes_and_repeats(root, tokenizer):
    seen = []

    def augment(record, size, rng):
        seen.append((record.boxes.tolist(), size, float(rng.random())))
        return make_box_record(record.boxes[:1], record.scores[:1], record.labels[:1])

    source = {**write_source(root, "aug", "ptd"), "repeat": 2}
    first, second = (mix(root, tokenizer, [source], box_augmentation=augment, seed=5) for _ in range(2))
    items = [first[i] for i in (0, 1, 2, 3)]
    assert [[len(boxes) for boxes in item["boxes"]] for item in items] == [[1], [], [1, 1], [1]]
    boxes, size, _ = seen[0]
    assert boxes == [[0, 0, 9, 9], [9, 9, 18, 18]] and size == (30, 20)
    # Another draw for each picture and each repetition, the same one each time.
    assert len({draw for *_, draw in seen}) == 4 == len(seen)
    second[0]
    assert seen[-1] == seen[0]


@pytest.mark.parametrize(
    "change", [{"shuffle_boxes": True}, {"box_augmentation": BoxAugmentation(dropout=0.3, jitter=0.2)}]
)
def test_epochs_draw_boxes_anew(root, tokenizer, change):
    """By seed, epoch and index alone, whoever loads the sample; the first epoch is what no epoch is."""
    source = write_source(root, "epochs", "ptpdp", boxes=8)

    def build(**settings):
        return mix(root, tokenizer, [source], seed=3, **change, **settings)

    def load(dataset, workers=0):
        loader = DataLoader(
            dataset, batch_size=1, collate_fn=list, num_workers=workers, persistent_workers=workers > 0
        )
        epochs = []
        for epoch in (0, 1, 2):
            dataset.set_epoch(epoch)
            epochs.append([boxes.tolist() for (sample,) in loader for boxes in sample["boxes"]])
        return epochs

    first, second, third = found = load(build())
    assert first == [boxes.tolist() for sample in build() for boxes in sample["boxes"]]
    assert first != second != third != first
    assert load(build(), workers=2) == found
    later = build()
    later.set_epoch(2)  # as a resumed run begins
    assert [boxes.tolist() for sample in later for boxes in sample["boxes"]] == third
    once = mix(root, tokenizer, [{**source, "draw": {"anew": False}}], seed=3, **change)
    assert load(once) == [first, first, first]


class TestBrokenData:
    """Pictures that cannot be read, in one of two sources."""

    @pytest.fixture
    def sources(self, tmp_path):
        (tmp_path / "images").mkdir()
        for number in range(10):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        good, bad = write_source(tmp_path, "good", "pppp"), write_source(tmp_path, "bad", "pptpp")
        bad["image_folder"] = "broken"
        (tmp_path / "broken").mkdir()
        for number in range(10):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "broken" / f"{number}.png")
        (tmp_path / "broken" / "0.png").write_bytes(b"not a picture")
        (tmp_path / "broken" / "3.png").unlink()
        return tmp_path, [good, bad]

    def test_an_error_names_file_and_record(self, sources, tokenizer):
        root, parts = sources
        mixture = mix(root, tokenizer, parts)
        with pytest.raises(PictureError, match=r"broken/0\.png of record '0' of .*bad\.json"):
            mixture[4]

    def test_a_whole_sample_of_the_same_source_takes_its_place(self, sources, tokenizer):
        root, parts = sources
        mixture = mix(root, tokenizer, parts, bad_image="skip")
        assert same(mixture[4], mixture[5]) and same(mixture[7], mixture[8])
        assert [mixture[i]["id"] for i in range(4)] == ["0", "1", "2", "3"]
        counts = [source["skipped"]["bad_image"] for source in mixture.report()["sources"]]
        assert counts == [0, 2] and mixture.bad_samples == 2

    def test_workers_count_together_and_the_report_says_so(self, sources, tokenizer, monkeypatch):
        root, parts = sources
        mixture = mix(root, tokenizer, parts, bad_image="skip")
        loader = DataLoader(mixture, 2, num_workers=2, collate_fn=collate)
        first = [batch["data"]["ids"] for batch in loader]
        assert mixture.bad_samples == 2 and [batch["data"]["ids"] for batch in loader] == first
        lines = report_lines(loader, monkeypatch)
        assert lines == ["Data: 2 of 5 records of bad were skipped (2 bad_image), such as id '0', '3'"]

    def test_a_limit_stops_the_run(self, sources, tokenizer):
        root, parts = sources
        parts[1]["max_bad_samples"] = 1
        mixture = mix(root, tokenizer, parts, bad_image="skip")
        mixture[4]
        with pytest.raises(RuntimeError, match=r"bad\.json: more than max_bad_samples=1; .*3\.png of record '3'"):
            mixture[7]

    def test_processes_are_added_up(self, sources, tokenizer, monkeypatch):
        root, parts = sources
        mixture = mix(root, tokenizer, parts, bad_image="skip", no_label="skip")
        mixture[4], mixture[7]
        other = [{"name": "bad", "records": 5, "skipped": {"bad_image": 3, "no_label": 1, "over_budget": 0}}]
        other[0]["skipped_ids"] = ["3", "4"]
        monkeypatch.setattr("mg_llava.engine.hooks.all_gather_object", lambda mine: [mine, other])
        loader = DataLoader(mixture, 2, collate_fn=collate)
        assert report_lines(loader, monkeypatch) == [
            "Data: 6 of 5 records of bad were skipped (5 bad_image, 1 no_label), such as id '0', '3', '4'"
        ]

    def test_the_report_says_only_what_is_new_during_training(self, sources, tokenizer, monkeypatch):
        root, parts = sources
        mixture = mix(root, tokenizer, parts, bad_image="skip")
        hook, runner, lines = DataReportHook(interval=2), _Runner(DataLoader(mixture)), capture(monkeypatch)
        for runner.iter in range(6):
            hook.after_train_iter(runner, runner.iter)
            if runner.iter == 2:
                mixture[4]
        assert lines == ["Data: 1 of 5 records of bad were skipped (1 bad_image), such as id '0'"]
        hook.after_train(runner)
        assert len(lines) == 2
        with pytest.raises(ValueError, match="interval must be at least 1"):
            DataReportHook(interval=0)


class _Runner:
    """What the hook needs of a runner."""

    iter = 0

    def __init__(self, loader):
        self.train_dataloader = loader


def capture(monkeypatch):
    lines = []
    monkeypatch.setattr("mg_llava.engine.hooks.print_log", lambda text, **_: lines.append(text))
    return lines


def report_lines(loader, monkeypatch):
    lines = capture(monkeypatch)
    DataReportHook().after_train(_Runner(loader))
    return lines
