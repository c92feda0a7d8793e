"""Samples of one source: contents, determinism, faults and policies; batches; one pass through mmengine's loader."""

import json
import pickle

import pytest
import torch
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import DataLoader

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.files import PictureError, open_picture
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import RecordError
from mg_llava.data.samplers import LengthGroupedSampler
from mg_llava.data.text.conversation import NoLabelError, Template, encode_conversation
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.data.conftest import turns_of
from tests.settings import grouped


def make(files, tokenizer, **changes):
    arguments = dict(
        data_path=files / "data.json",
        image_folder=files / "images",
        tokenizer=tokenizer,
        template="vicuna",
        picture_processor=PictureProcessor(32),
        box_path=files / "boxes.json",
    )
    return LLaVADataset(**grouped(**{**arguments, **changes}))


def write_records(files, records):
    (files / "data.json").write_text(json.dumps(records))


def same(first, second):
    return all(
        all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True))
        if key in ("images", "boxes")
        else first[key] == second[key]
        for key in first
    )


def test_samples(files, tokenizer):
    dataset = make(files, tokenizer)
    assert [dataset[i]["id"] for i in range(4)] == ["text", "1", "two", "3"]
    assert [len(dataset[i]["images"]) for i in range(4)] == [0, 1, 2, 1]
    assert [[len(boxes) for boxes in dataset[i]["boxes"]] for i in range(4)] == [[], [2], [1, 1], [1]]
    for i in range(4):
        item, record = dataset[i], dataset.record(i)
        encoded = encode_conversation(record.turns, tokenizer, Template.build("vicuna"))
        assert (item["input_ids"], item["labels"]) == (encoded.input_ids, encoded.labels)
        for image in item["images"]:
            assert image.dtype == torch.uint8 and image.shape == (3, 32, 32)
    picture = open_picture(files / "images" / "a.png")
    expected = PictureProcessor(32)(picture, dataset.box_store.get(1))
    assert torch.equal(dataset[1]["images"][0], expected.pixels)
    assert torch.equal(dataset[1]["boxes"][0], expected.boxes)


def test_json_lines_and_text_alone(files, tokenizer):
    records = json.loads((files / "data.json").read_text())
    (files / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    first, second = make(files, tokenizer), make(files, tokenizer, data_path=files / "data.jsonl")
    assert all(same(first[i], second[i]) for i in range(4))
    write_records(files, records[:1])
    alone = make(files, tokenizer, image_folder=None, picture_processor=None, box_path=None)
    assert alone[0]["images"] == [] and alone.modality_length[0] < 0


def test_an_item_depends_on_index_and_seed_alone(files, tokenizer):
    first, second = (make(files, tokenizer, shuffle_boxes=True, seed=3) for _ in range(2))
    order = [3, 1, 0, 2, 1]
    items = {i: second[i] for i in order}
    assert all(same(first[i], items[i]) for i in range(4))
    assert all(same(pickle.loads(pickle.dumps(first))[i], items[i]) for i in range(4))
    plain = make(files, tokenizer)
    orders = {
        tuple(map(tuple, make(files, tokenizer, shuffle_boxes=True, seed=s)[1]["boxes"][0].tolist())) for s in range(9)
    }
    assert len(orders) == 2 and tuple(map(tuple, plain[1]["boxes"][0].tolist())) in orders


def test_max_dataset_length(files, tokenizer):
    ids = [[make(files, tokenizer, max_dataset_length=2, seed=s)[i]["id"] for i in range(2)] for s in (0, 0, 1, 2, 3)]
    assert ids[0] == ids[1] and len({tuple(pair) for pair in ids}) > 1
    assert len(make(files, tokenizer, max_dataset_length=9)) == 4


def test_modality_length(files, tokenizer):
    dataset = make(files, tokenizer, count_boxes=False)
    exact = [len(dataset[i]["input_ids"]) for i in range(4)]
    assert [length < 0 for length in dataset.modality_length] == [True, False, False, False]
    assert all(0.4 * n < abs(m) < 2.5 * n for n, m in zip(exact, dataset.modality_length, strict=True))
    longer = make(files, tokenizer, tokens_per_image=100, count_boxes=False).modality_length
    assert [b - a for a, b in zip(dataset.modality_length, longer, strict=True)] == [0, 100, 200, 100]


def test_modality_length_counts_boxes(files, tokenizer):
    plain = make(files, tokenizer, count_boxes=False).modality_length

    def boxes(**changes):
        lengths = make(files, tokenizer, **changes).modality_length
        return [b - a for a, b in zip(plain, lengths, strict=True)]

    # Two boxes; one and the stand-in of the picture without; one.
    assert boxes() == [0, 2, 2, 1]
    assert boxes(picture_processor=PictureProcessor(32, empty_box="none")) == [0, 2, 1, 1]
    assert boxes(box_path=None) == [0, 1, 2, 1]
    # Eight boxes in one place: the filter leaves one, and fewer are expected than the file has.
    rows = json.loads((files / "boxes.json").read_text())
    rows[0].update(boxes=[[1, 1, 20, 20]] * 8, scores=[0.5] * 8, labels=["x"] * 8)
    (files / "boxes.json").write_text(json.dumps(rows))
    assert boxes()[1] < 8
    limits = dict(context_length=12, tokens_per_image=2)
    assert [abs(length) <= 12 for length in make(files, tokenizer, **limits).modality_length] == [True] * 4


def test_long_text_limits_the_boxes(files, tokenizer):
    boxes = [
        {"id": 1, "boxes": [[i, 0, i + 1, 1] for i in range(0, 9, 3)], "scores": [0.3, 0.9, 0.5], "labels": ["x"] * 3}
    ]
    (files / "boxes.json").write_text(json.dumps(boxes))
    options = dict(missing_box="empty", max_length=60)
    assert [len(make(files, tokenizer, **options, long_text_margin=m)[1]["boxes"][0]) for m in (50, 1, None)] == [
        1,
        3,
        3,
    ]


def test_placeholder_mismatch_is_an_error_at_the_start(files, tokenizer):
    records = json.loads((files / "data.json").read_text())
    write_records(files, [*records, {"id": "odd", "image": "a.png", "conversations": turns_of("What?", "A.")}])
    with pytest.raises(
        RecordError, match=r"data\.json, record 4 \(id 'odd'\): 0 <image> in the questions, 1 pictures"
    ):
        make(files, tokenizer)


def test_boxes_outside_of_their_picture_are_named_and_counted(files, tokenizer, monkeypatch):
    said = []
    monkeypatch.setattr("mg_llava.data.faults.print_log", lambda message, **_: said.append(message))
    boxes = [[0, 0, 5, 5], [9000, 0, 9001, 5], [-9, -9, -1, -1]]
    record = {"boxes": boxes, "scores": [1, 0.9, 0.8], "labels": ["x", "y", "z"]}
    (files / "boxes.json").write_text(json.dumps({"1": record, "3": {**record, "boxes": [[0, 0, 5, 5]] * 3}}))
    dataset = make(files, tokenizer, missing_box="empty")
    assert dataset.report()["stray_boxes"] == 0
    for _ in range(2):  # two epochs
        loaded = [item for batch in DataLoader(dataset, num_workers=2, collate_fn=list) for item in batch]
    assert [len(item["boxes"][0]) for item in loaded if item["id"] in ("1", "3")] == [1, 3]
    assert (dataset.report()["stray_boxes"], dataset.report()["stray_ids"]) == (2, ["1"])
    dataset = make(files, tokenizer, missing_box="empty")
    assert dataset[1]["id"] == dataset[1]["id"] == "1"
    (message,) = said
    assert message.startswith(f"{files / 'boxes.json'}: 2 of 3 boxes of id '1' lie outside of the picture of ")


def test_missing_boxes(files, tokenizer):
    (files / "boxes.json").write_text(json.dumps({"1": {"boxes": [[0, 0, 5, 5]], "scores": [1], "labels": ["x"]}}))
    with pytest.raises(RecordError, match=r"boxes\.json has no boxes for 3 pictures, such as id 'two#0'"):
        make(files, tokenizer)
    for policy, boxes in (("corner", [[0, 0, 0, 0]]), ("picture", [[0, 0, 32, 32]]), ("empty", [])):
        dataset = make(files, tokenizer, missing_box=policy)
        assert dataset.missing_boxes == dataset.report()["missing_boxes"] == 3 and dataset.faults.missing_box == policy
        assert dataset[3]["boxes"][0].tolist() == boxes
    proposer = dict(type="mg_llava.ConnectedComponentProposals")
    found = make(files, tokenizer, missing_box="detect", proposer=proposer)[3]["boxes"][0]
    assert len(found)
    none = make(
        files,
        tokenizer,
        box_path=None,
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=8, empty_box="none"),
    )
    assert none[3]["boxes"][0].shape == (0, 4)


def test_bad_pictures(files, tokenizer):
    (files / "images" / "b.png").write_bytes(b"not a picture")
    dataset = make(files, tokenizer)
    with pytest.raises(PictureError, match=r"b\.png of record 'two' of .*data\.json cannot be read"):
        dataset[2]
    skipping = make(files, tokenizer, bad_image="skip")
    assert same(skipping[2], dataset[3]) and same(skipping[2], dataset[3]) and skipping.bad_samples == 1
    (files / "images" / "c.jpg").unlink()
    assert same(skipping[3], dataset[0]) and skipping.bad_samples == 2
    with pytest.raises(RuntimeError, match=r"more than max_bad_samples=0; .*b\.png"):
        make(files, tokenizer, bad_image="skip", max_bad_samples=0)[2]
    (files / "images" / "a.png").unlink()
    write_records(files, json.loads((files / "data.json").read_text())[1:])
    with pytest.raises(RuntimeError, match="none of the 3 samples"):
        make(files, tokenizer, bad_image="skip")[0]


def test_workers_share_the_count_of_bad_samples(files, tokenizer):
    (files / "images" / "b.png").write_bytes(b"")
    dataset = make(files, tokenizer, bad_image="skip")
    ids = [batch["data"]["ids"] for batch in DataLoader(dataset, 2, num_workers=2, collate_fn=collate)]
    assert ids == [["text", "1"], ["3", "3"]] and dataset.bad_samples == 1
    with pytest.raises(PictureError, match=r"b\.png"):
        list(DataLoader(make(files, tokenizer), 2, num_workers=1, collate_fn=collate))


def test_samples_without_labels(files, tokenizer):
    records = json.loads((files / "data.json").read_text())
    records.insert(0, {"id": "mute", "conversations": turns_of("Anyone?")})
    records.append({"id": "silent", "conversations": turns_of("Anyone?", "")})
    write_records(files, records)
    dataset = make(files, tokenizer)
    assert len(dataset) == 5
    assert [label for label in dataset[4]["labels"] if label != IGNORE_INDEX] == [tokenizer.eos_token_id]
    tight = make(files, tokenizer, max_length=2)
    assert tight[2]["id"] == "3" and tight.bad_samples == 1
    with pytest.raises(NoLabelError, match=r"record 'two' of .*2 pictures .*max_length 2"):
        make(files, tokenizer, max_length=2, no_label="error")[2]
    write_records(files, records[:1])
    with pytest.raises(RecordError, match="none of the 1 records has a question with an answer"):
        make(files, tokenizer)
    write_records(files, [])
    with pytest.raises(RecordError, match=r"data\.json: found no records; a record needs id and conversations"):
        make(files, tokenizer)


def test_wrong_settings(files, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"image_folder .* does not exist"):
        make(files, tokenizer, image_folder=files / "nowhere")
    with pytest.raises(ValueError, match="set image_folder and picture_processor"):
        make(files, tokenizer, image_folder=None)
    with pytest.raises(ValueError, match="bad_image is 'ignore'; allowed: 'error', 'skip'"):
        make(files, tokenizer, bad_image="ignore")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        make(files, tokenizer, data_path=files / "none.json")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_bad_samples": -1},
        {"max_bad_samples": True},
        {"max_pixels": 0},
        {"max_pixels": "1e6"},
        {"repeat": float("inf")},
        {"repeat": "2"},
        {"seed": -1},
        {"max_dataset_length": 2.5},
        {"max_dataset_length": "all"},
        {"context_length": 0},
        {"context_length": 99.5},
        {"max_length": -1},
        {"long_text_margin": -5},
    ],
    ids=str,
)
def test_numbers_out_of_their_range_are_named(files, tokenizer, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{name} is {value!r}; it must be (at least|positive)"):
        make(files, tokenizer, **settings)


def test_collate_contract(files, tokenizer):
    dataset = make(files, tokenizer)
    items = [dataset[i] for i in (2, 0, 1)]
    batch = collate(items)
    data = batch["data"]
    assert batch["data_samples"] is None and data["ids"] == ["two", "text", "1"]
    lengths = [len(item["input_ids"]) for item in items]
    assert data["input_ids"].shape == data["labels"].shape == data["attention_mask"].shape == (3, max(lengths))
    assert data["attention_mask"].dtype == torch.bool and data["attention_mask"].sum(1).tolist() == lengths
    for row, item in enumerate(items):
        n = lengths[row]
        assert data["attention_mask"][row, :n].all()
        assert data["input_ids"][row, :n].tolist() == item["input_ids"] and not data["input_ids"][row, n:].any()
        assert data["labels"][row, :n].tolist() == item["labels"]
        assert (data["labels"][row, n:] == IGNORE_INDEX).all()
    assert data["canvas"].shape == (3, 3, 32, 32) and data["canvas"].dtype == torch.uint8
    assert [len(boxes) for boxes in data["boxes"]] == [1, 1, 2] and data["boxes"][0].dtype == torch.float32
    assert torch.equal(data["canvas"][2], items[2]["images"][0])


def test_collate_text_alone_and_faults(files, tokenizer):
    dataset = make(files, tokenizer)
    data = collate([dataset[0], dataset[0]])["data"]
    assert len(data["input_ids"]) == 2 and "canvas" not in data and "boxes" not in data
    with pytest.raises(ValueError, match="'1' has 1 placeholders, 0 pictures"):
        collate([{**dataset[1], "images": []}])
    with pytest.raises(ValueError, match="different sizes"):
        collate([dataset[1], make(files, tokenizer, picture_processor=PictureProcessor(16))[1]])
    with pytest.raises(ValueError, match="no samples"):
        collate([])
    prompt = {key: value for key, value in dataset[0].items() if key != "labels"}
    assert "labels" not in collate([prompt])["data"]


def test_mmengine_builds_the_loader(files, tokenizer):
    from mmengine.runner import Runner

    tokenizer.save_pretrained(files / "llm")
    loader = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(
                type="mg_llava.LLaVADataset",
                data_path=str(files / "data.json"),
                image_folder=str(files / "images"),
                tokenizer=dict(type="transformers.AutoTokenizer", pretrained_model_name_or_path=str(files / "llm")),
                template=dict(INSTRUCTION="Q: {input} A:", SEP="\n"),
                picture_processor=dict(type="mg_llava.PictureProcessor", image_size=16),
                box_path=str(files / "boxes.json"),
            ),
            sampler=dict(type="mg_llava.LengthGroupedSampler", per_device_batch_size=2),
            collate_fn=dict(type="mg_llava.collate"),
        ),
        seed=0,
    )
    batches = list(loader)
    assert sorted(i for batch in batches for i in batch["data"]["ids"]) == ["1", "3", "text", "two"]
    assert all(
        (batch["data"]["input_ids"] == IMAGE_TOKEN_INDEX).sum() == len(batch["data"].get("boxes", []))
        for batch in batches
    )
    assert DATASETS.get("mg_llava.LLaVADataset") is LLaVADataset
    assert DATA_SAMPLERS.get("mg_llava.LengthGroupedSampler") is LengthGroupedSampler
