"""What the model sees: tokens, boxes and notes agree with the sample; drawings and pages show them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.mixture import MixtureDataset
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.inspection.browse.drawing import REASON_COLORS, TOKEN_COLORS, draw_sample, visible
from mg_llava.inspection.browse.page import render_page
from mg_llava.inspection.browse.run import ChosenSample, SampleChooser, load_dataset, locate, write_samples
from mg_llava.inspection.browse.samples import SampleView, Token, decode_token, view_sample
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests import toy
from tests.data.conftest import train_tokenizer
from tests.settings import grouped
from tests.videos import write_video

TEMPLATE = {"INSTRUCTION": "Q: {input} A:", "SEP": "\n"}
VISUAL = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return toy.write_data(folder) | {"tokenizer": str(toy.write_tokenizer(folder / "tokenizer"))}


def make(data: dict[str, str], **changes: object) -> LLaVADataset:
    arguments = dict(
        template=TEMPLATE, picture_processor=PictureProcessor(toy.CANVAS), tokens_per_image=VISUAL, name="toy"
    )
    return LLaVADataset(**grouped(**{**data, **arguments, **changes}))


def watch(items, total, unit):
    return items


@pytest.mark.parametrize("index", [0, 1, 3])
def test_view_agrees_with_the_sample(data: dict[str, str], index: int) -> None:
    source = make(data)
    sample, view = source[index], view_sample(source, index)
    assert view.id == sample["id"] and (view.source, view.index, view.position) == ("toy", index, index)
    assert [token.id for token in view.tokens if token.kind != "boxes"] == list(sample["input_ids"])
    expected = [label != IGNORE_INDEX for label in sample["labels"]]
    assert [token.supervised for token in view.tokens if token.kind != "boxes"] == expected
    boxes = sum(map(len, sample["boxes"]))
    pictures = len(sample["images"])
    assert view.length == len(sample["input_ids"]) + pictures * (VISUAL - 1) + boxes
    assert view.supervised == sum(expected) > 0
    assert [token.count for token in view.tokens if token.kind == "boxes"] == list(map(len, sample["boxes"]))
    for picture, pixels, placed in zip(view.pictures, sample["images"], sample["boxes"], strict=True):
        np.testing.assert_array_equal(picture.pixels, pixels.permute(1, 2, 0))
        tokens = sorted((fate for fate in picture.fates if fate.kept), key=lambda fate: fate.token)
        np.testing.assert_allclose([fate.place for fate in tokens], placed, atol=1e-3)
    text = "".join(token.text for token in view.tokens)
    assert "what is there?" in text and f"{'one two three four'.split()[index % 4]} digits" in text
    assert text.count(f"<image: {VISUAL} tokens><2 boxes>") == pictures


@pytest.mark.parametrize("pad", [True, False], ids=["padded", "cropped"])
def test_frames_of_a_video_are_viewed_as_the_sample_has_them(data: dict[str, str], tmp_path: Path, pad: bool) -> None:
    write_video(tmp_path / "clip.mp4", frames=9)
    talk = [{"from": "human", "value": "<video>\nwhat is there?"}, {"from": "gpt", "value": "two digits"}]
    (tmp_path / "records.json").write_text(json.dumps([{"id": "v", "video": "clip.mp4", "conversations": talk}]))
    boxes = [{"boxes": [[4 + n, 6, 30 + n, 30]], "scores": [0.9], "labels": ["a"]} for n in range(3)]
    (tmp_path / "boxes.json").write_text(json.dumps([{"id": f"v#{n}", **own} for n, own in enumerate(boxes)]))
    paths = {
        name: str(tmp_path / place) for name, place in (("data_path", "records.json"), ("box_path", "boxes.json"))
    }
    processor = PictureProcessor(toy.CANVAS, video={"frames": 3, "pad_to_square": pad})
    source = make(data, **paths, image_folder=str(tmp_path), picture_processor=processor)
    sample, view = source[0], view_sample(source, 0)
    assert view.length == len(sample["input_ids"]) + 3 * (VISUAL - 1) + 3 and len(view.pictures) == 3
    for picture, pixels, placed in zip(view.pictures, sample["images"], sample["boxes"], strict=True):
        np.testing.assert_array_equal(picture.pixels, pixels.permute(1, 2, 0))
        np.testing.assert_allclose([fate.place for fate in picture.fates if fate.kept], placed, atol=1e-3)


def test_source_is_left_alone(data: dict[str, str]) -> None:
    source = make(data)
    processor = source.picture_processor
    view_sample(source, 0)
    assert source.picture_processor is processor


def test_numbers_follow_shuffled_and_cut_boxes(data: dict[str, str]) -> None:
    source = make(data, shuffle_boxes=True)
    orders = set()
    for index in range(0, 16, 4):
        picture = view_sample(source, index).pictures[0]
        for fate in picture.fates:
            np.testing.assert_allclose(fate.place, picture.boxes[fate.token], atol=1e-3)
        orders.add(tuple(fate.token for fate in picture.fates))
    assert orders == {(0, 1), (1, 0)}


def test_notes(data: dict[str, str]) -> None:
    plain = make(data)
    assert view_sample(plain, 0).notes == ()
    nothing = make(data, box_path=None)
    view = view_sample(nothing, 0)
    assert "no box is left; one token stands for that (corner)" in view.notes
    assert [token.text for token in view.tokens if token.kind == "boxes"] == ["<1 box>"]
    moved = view_sample(make(data, box_augmentation=BoxAugmentation(drop_all=1)), 0)
    assert "boxes after augmentation, as in training" in moved.notes and moved.pictures[0].fates == ()
    cut = view_sample(make(data, max_length=12), 0)
    assert "the text was cut to 12 ids" in cut.notes and cut.supervised
    blind = view_sample(plain, 0, has_box_tokens=False)
    assert "the model of this config has no box branch" in blind.notes
    assert blind.length == view_sample(plain, 0).length - 2


def test_boxes_without_room_are_capped(data: dict[str, str]) -> None:
    whole = view_sample(make(data), 0)
    view = view_sample(make(data, context_length=whole.length - 1), 0)
    assert view.length == whole.length - 1
    assert [(fate.reason, fate.token) for fate in view.pictures[0].fates] == [("kept", 0), ("cap", None)]


def test_bad_picture_is_an_error_whatever_the_policy(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"0_0\.png"):
        view_sample(make(data, image_folder=tmp_path, bad_image="skip"), 0)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_tokens_one_by_one_make_the_text(kind: str) -> None:
    tokenizer = train_tokenizer(kind)
    text = " How many digits are there?\nThree digits."
    pieces = [decode_token(tokenizer, token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert "".join(pieces).strip() == text.strip()
    assert decode_token(tokenizer, tokenizer.eos_token_id) == "</s>"
    parts = [decode_token(tokenizer, token) for token in tokenizer.encode("é", add_special_tokens=False)]
    assert all(part and "\ufffd" not in part for part in parts)


def crowd(data: dict[str, str], count: int) -> SampleView:
    """A sample with ``count`` boxes of all fates."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (count, 2))
    corners[::5] += 1000
    sides = rng.uniform(5, 20, (count, 2))
    sides[1::5] = 0.1
    boxes = np.hstack([corners, corners + sides]).tolist()
    record = {"id": "toy_0", "boxes": boxes, "scores": rng.random(count).tolist(), "labels": ["a", "b"] * (count // 2)}
    file = Path(data["data_path"]).with_name(f"crowd{count}.json")
    file.write_text(json.dumps([record]))
    processor = PictureProcessor(toy.CANVAS, mode="exact", max_boxes=2, cap="per_image")
    source = make(data, picture_processor=processor, box_path=file, missing_box="empty")
    return view_sample(source, 0)


@pytest.mark.parametrize("count", [10, 60])
def test_drawing_shows_every_fate(data: dict[str, str], count: int) -> None:
    view = crowd(data, count)
    reasons = {fate.reason for fate in view.pictures[0].fates}
    assert reasons == set(REASON_COLORS)
    drawn = draw_sample(view)
    pixels = np.asarray(drawn).reshape(-1, 3)
    for color in [*REASON_COLORS.values(), *(pair[1] for pair in TOKEN_COLORS.values())]:
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 20, color
    assert (np.asarray(drawn)[:, -8:] == 255).all() and (np.asarray(drawn)[-8:] == 255).all()
    assert min(drawn.size) >= 768


def test_drawing_of_long_text_and_of_none(data: dict[str, str]) -> None:
    view = view_sample(make(data), 3)
    short = draw_sample(view)
    words = tuple(Token("text", word, 5) for word in [*[" wörd"] * 40, "w" * 300, "\n", "", "\x00\t二"] * 30)
    long = draw_sample(replace(view, tokens=words, id="i" * 400))
    assert short.width == long.width and long.height > short.height + 500
    assert (np.asarray(long)[:, -8:] == 255).all()
    assert visible("a\n\tb 二") == "a\\n\\tb 二"


@given(st.integers(1, 100), st.integers(1, 100), st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 4), max_size=30))
@settings(max_examples=15)
def test_any_boxes_can_be_drawn(data: dict[str, str], width: int, height: int, corners: list) -> None:
    from mg_llava.data.records.schema import make_box_record
    from mg_llava.inspection.browse.samples import PictureView

    processor = PictureProcessor(toy.CANVAS)
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    record = make_box_record(boxes, None, ["x" * 40] * len(boxes))
    made = processor(Image.new("RGB", (width, height)), record)
    fates = tuple(processor.explain((width, height), record))
    pixels = made.pixels.permute(1, 2, 0).numpy()
    picture = PictureView("a.png", pixels, made.canvas, fates, made.boxes.numpy(), made.is_empty)
    drawn = draw_sample(SampleView("s", 0, 0, "i", (picture,), ()))
    assert (np.asarray(drawn)[:, -8:] == 255).all()


def test_page_has_the_tokens_and_escapes() -> None:
    view = SampleView("s<1>", 3, 3, "a&b", (), (Token("text", "<s>", 1), Token("text", " yes\n", 2, True)), ("so",))
    page = render_page("a < b", [(view, "x.png")], ["sample 9 is <bad>"])
    assert '<span class="text0" title="1">&lt;s&gt;</span>' in page
    assert '<span class="supervised1" title="2"> yes\\n</span><br>' in page
    for part in ("a &lt; b", "s&lt;1&gt; [3]", "a&amp;b", 'src="x.png"', "sample 9 is &lt;bad&gt;", "so"):
        assert part in page
    assert "<bad>" not in page and "http" not in page


def test_files_are_written_and_bad_samples_named(data: dict[str, str], tmp_path: Path) -> None:
    source = make(data)
    broken = make(data, image_folder=tmp_path, name="broken/one")
    choices = [ChosenSample(source, 0, 0), ChosenSample(broken, 0), ChosenSample(source, 3, 3)]
    out = tmp_path / "new" / "out"
    problems = write_samples(choices, out, watch, "title", html=True, problems=["sample 99 does not exist"])
    assert problems[0] == "sample 99 does not exist" and len(problems) == 2
    assert "broken/one [0]" in problems[1] and "0_0.png" in problems[1]
    assert sorted(path.name for path in out.iterdir()) == [
        "index.html", "samples.json", "toy-000000-toy_0.png", "toy-000003-toy_3.png",
    ]  # fmt: skip
    content = json.loads((out / "samples.json").read_text())
    assert content["problems"] == problems
    first, second = content["samples"]
    assert (first["id"], first["drawing"], second["pictures"]) == ("toy_0", "toy-000000-toy_0.png", [])
    assert [token["kind"] for token in first["tokens"] if token["id"] == IMAGE_TOKEN_INDEX] == ["image", "boxes"]
    assert sum(token["supervised"] for token in first["tokens"]) == first["supervised"] > 0
    assert [box["reason"] for box in first["pictures"][0]["boxes"]] == ["kept", "kept"]
    assert len(first["pictures"][0]["box_tokens"]) == 2


def test_names_of_files_are_safe(data: dict[str, str], tmp_path: Path) -> None:
    rows = json.loads(Path(data["data_path"]).read_text())[3:4]
    rows[0]["id"] = "../a/b:c?" + "x" * 300
    (tmp_path / "one.json").write_text(json.dumps(rows))
    source = make(data, data_path=tmp_path / "one.json", name="é n")
    assert write_samples([ChosenSample(source, 0)], tmp_path / "out", watch) == []
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_chooser(data: dict[str, str]) -> None:
    first, second = make(data, name="first"), make(data, name="second", max_dataset_length=5)
    mixture = MixtureDataset([first, second])
    chooser = SampleChooser(mixture)
    choices, problems = chooser.by_position([len(mixture) - 1, 99, 0, 0, -1])
    assert [(choice.source.name, choice.position) for choice in choices] == [
        (mixture.sources[mixture.locate(position)[0]].name, position) for position in (len(mixture) - 1, 0)
    ]
    assert [problem.split(" does")[0] for problem in problems] == ["sample 99", "sample -1"]
    found, problems = chooser.by_id(["toy_3", "nobody", "toy_1"], watch)
    assert [(choice.source.name, choice.index) for choice in found] == [("first", 3), ("first", 1)]
    assert problems == ["no record of first, second has the id 'nobody'"]

    one = SampleChooser(mixture, "second")
    assert [choice.index for choice in one.by_position(range(9))[0]] == [0, 1, 2, 3, 4]
    drawn = [choice.position for choice in chooser.at_random(7, seed=1)[0]]
    assert drawn == [choice.position for choice in chooser.at_random(7, seed=1)[0]]
    assert len(set(drawn)) == 7
    assert len(one.at_random(100, seed=0)[0]) == 5
    with pytest.raises(ValueError, match="no sources are named 'third'; the sources are: first, second"):
        SampleChooser(mixture, "third")


def test_locate_in_concatenated_sets(data: dict[str, str]) -> None:
    first, second = make(data, name="first"), make(data, name="second")
    joined = ConcatDataset([first, ConcatDataset([second, first])])
    assert [locate(joined, position) for position in (0, 15, 16, 32)] == [
        (first, 0), (first, 15), (second, 0), (first, 0),
    ]  # fmt: skip


def test_load_dataset_faults(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py does not exist"):
        load_dataset(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").write_text("model = dict()\n")
    with pytest.raises(ValueError, match=r"no train_dataloader\.dataset"):
        load_dataset(tmp_path / "empty.py")
