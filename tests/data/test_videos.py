"""Records about videos: frames with their boxes in place of pictures, budgets, faults."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from mg_llava.batch import TokenCount
from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.schema import RecordError, parse_record
from mg_llava.data.text.budget import BudgetError
from mg_llava.registry import MODELS
from mg_llava.tokens import IMAGE_TOKEN_INDEX
from tests import toy
from tests.videos import write_video

FRAMES = 4
TOKENS = TokenCount(per_canvas=4, per_frame=1)


def talk(question: str = "<video>\nwhat is there?") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "two digits"}]


def boxes_of(key: str, shift: float = 0.0, count: int = 2) -> dict[str, Any]:
    boxes = [[4 + 9 * n + shift, 6, 12 + 9 * n + shift, 14] for n in range(count)]
    return {"id": key, "boxes": boxes, "scores": [0.9 - n / 10 for n in range(count)], "labels": ["a"] * count}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clip, a picture, records about both and about none, and their boxes."""
    write_video(tmp_path / "clip.mp4", frames=9)
    toy.write_data(tmp_path / "toy", records=1)
    (tmp_path / "toy" / "images" / "0_0.png").rename(tmp_path / "0.png")
    records = [
        {"id": "v", "video": "clip.mp4", "conversations": talk("what is there?\n<video>")},
        {"id": "p", "image": "0.png", "conversations": talk("<image>\nwhat is there?")},
        {"id": "t", "conversations": talk("what is there?")},
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    boxes = [boxes_of(f"v#{n}", shift=n) for n in range(FRAMES)] + [boxes_of("p")]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def build(folder: Path, toy_paths: dict[str, str], video: dict | None = None, **settings: Any) -> LLaVADataset:
    processor = {"image_size": toy.CANVAS, "video": {"frames": FRAMES, **(video or {})}}
    paths = {"data_path": folder / "records.json", "image_folder": folder, "box_path": folder / "boxes.json"}
    arguments = {"tokens": TOKENS, "picture_processor": {"type": "mg_llava.PictureProcessor", **processor}}
    return LLaVADataset(**{**paths, **arguments, "tokenizer": toy_paths["llm"], "template": "vicuna", **settings})


def test_a_video_is_its_frames(folder: Path, toy_paths: dict[str, str]) -> None:
    sample, picture, text = (build(folder, toy_paths)[index] for index in range(3))
    assert sample["input_ids"].count(IMAGE_TOKEN_INDEX) == len(sample["images"]) == FRAMES and sample["is_video"]
    places = [place for place, token in enumerate(sample["input_ids"]) if token == IMAGE_TOKEN_INDEX]
    assert places == list(range(places[0], places[0] + FRAMES)), "frames stand side by side, before the question"
    brightness = [float(image.float().mean()) for image in sample["images"]]
    assert brightness == sorted(brightness) and brightness[0] < brightness[-1]
    assert sample["tokens"] == [TOKENS.of_frames(1, 2)] * FRAMES and picture["tokens"] == [TOKENS(1, 2)]
    starts = [float(boxes[0, 0]) for boxes in sample["boxes"]]
    assert (np.diff(starts) > 0).all(), "each frame has its own boxes"
    assert "is_video" not in picture and "is_video" not in text
    batch = collate([sample, picture, text])["data"]
    assert batch["frames"] == [True] * FRAMES + [False] and batch["canvas"].shape[0] == FRAMES + 1


def test_one_frame_has_the_boxes_of_frame_0(folder: Path, toy_paths: dict[str, str]) -> None:
    (folder / "boxes.json").write_text(json.dumps([boxes_of("v#0"), boxes_of("p")]))
    sample = build(folder, toy_paths, {"frames": 1})[0]
    assert len(sample["images"]) == 1 and len(sample["boxes"][0]) == 2 and sample["is_video"]


@pytest.mark.parametrize("frames", [2, 8])
def test_boxes_of_other_frames_are_refused_with_both_numbers(
    frames: int, folder: Path, toy_paths: dict[str, str]
) -> None:
    with pytest.raises(RecordError, match=rf"boxes for 4 frames of video 'v', and {frames} frames are taken"):
        build(folder, toy_paths, {"frames": frames})


def test_boxes_of_a_frame_have_a_limit_of_their_own(folder: Path, toy_paths: dict[str, str]) -> None:
    records = [boxes_of(f"v#{n}", count=5) for n in range(FRAMES)] + [boxes_of("p", count=5)]
    (folder / "boxes.json").write_text(json.dumps(records))
    per_image = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS, "cap": "per_image"}
    dataset = build(folder, toy_paths, picture_processor={**per_image, "video": {"frames": FRAMES, "max_boxes": 3}})
    assert [len(boxes) for boxes in dataset[0]["boxes"]] == [3] * FRAMES and len(dataset[1]["boxes"][0]) == 5


def test_the_budget_counts_frames_as_frames(folder: Path, toy_paths: dict[str, str]) -> None:
    text = len(build(folder, toy_paths)[0]["input_ids"]) - FRAMES
    context = text + FRAMES * 1 + 5  # room for 5 of 8 boxes, with one token a frame
    dataset = build(folder, toy_paths, budget={"context_length": context, "long_text_margin": None})
    assert sorted(len(boxes) for boxes in dataset[0]["boxes"]) == [1, 1, 1, 2]
    whole = {"tokens": TokenCount(per_canvas=8), "budget": {"context_length": context}}
    with pytest.raises(BudgetError, match=r"record 'v' .*4 pictures of 8 tokens"):
        build(folder, toy_paths, **whole)


def test_what_videos_cost_is_in_the_log(
    folder: Path, toy_paths: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    build(folder, toy_paths, {"max_boxes": 3}, budget={"context_length": 200})
    logger.removeHandler(caplog.handler)
    (told,) = [record.getMessage() for record in caplog.records if "videos" in record.getMessage()]
    assert told.endswith("1 videos, 4 frames of 1 tokens and at most 3 boxes each; context_length is 200")


def test_lengths_count_frames(folder: Path, toy_paths: dict[str, str]) -> None:
    video, picture, text = build(folder, toy_paths, boxes={"count_boxes": False}).modality_length
    assert video - picture == FRAMES * 1 - 4 and text < 0


@pytest.mark.parametrize(("most", "most_of_frames"), [(1, 5), (5, 2), (3, None)])
def test_lengths_count_the_boxes_that_frames_and_pictures_keep(
    most: int, most_of_frames: int | None, folder: Path, toy_paths: dict[str, str]
) -> None:
    records = [boxes_of(f"v#{n}", count=5) for n in range(FRAMES)] + [boxes_of("p", count=5)]
    (folder / "boxes.json").write_text(json.dumps(records))
    limits = {"max_boxes": most, "video": {"frames": FRAMES, "max_boxes": most_of_frames}}
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS, "cap": "per_image", **limits}
    dataset = build(folder, toy_paths, picture_processor=processor)
    plain = build(folder, toy_paths, picture_processor=processor, boxes={"count_boxes": False})
    kept = [sum(map(len, dataset[index]["boxes"])) for index in range(2)]
    assert kept == [FRAMES * (most_of_frames or most), most]
    lengths, texts = dataset.modality_lengths(), plain.modality_lengths()
    assert [*(lengths - texts)] == [*kept, 0]


@pytest.mark.parametrize(
    ("name", "fault"), [("none.mp4", "missing"), ("empty.mp4", "empty"), ("text.mp4", "undecodable")]
)
def test_policies_of_pictures_hold_for_videos(name: str, fault: str, folder: Path, toy_paths: dict[str, str]) -> None:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    records = json.loads((folder / "records.json").read_text())
    records[0]["video"] = name
    (folder / "records.json").write_text(json.dumps(records))
    with pytest.raises(PictureError, match=f"{name} of record 'v'") as caught:
        build(folder, toy_paths)[0]
    assert caught.value.fault == fault
    dataset = build(folder, toy_paths, faults={"bad_image": "skip"})
    assert dataset[0]["id"] == "p" and dataset.report()["skipped"] and dataset.report()["skipped_ids"] == ["v"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversations": talk("what is there?")}, "0 <video> in the questions, 1 videos"),
        ({"conversations": talk("<video><video>")}, "2 <video> in the questions, 1 videos"),
        ({"conversations": talk("<video><image>")}, "1 <image> in the questions, 0 pictures"),
        ({"image": "a.png", "conversations": talk("<video><image>")}, "'image' and 'video'; a record is about one"),
        ({"video": ["a.mp4"]}, "video is .*; it must be the path of one video"),
        ({"video": None}, "1 <video> in the questions, 0 videos"),
    ],
)
def test_refused_records(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_record({"id": "v", "video": "a.mp4", "conversations": talk(), **changes})


def test_a_record_about_a_video_has_no_pictures_before_its_frames() -> None:
    record = parse_record({"id": "v", "video": "a.mp4", "conversations": talk("first <video> last")})
    assert record.images == () and record.with_frames(2).images == ("a.mp4", "a.mp4")
    assert record.with_frames(2).turns[0].text == "<image><image>\nfirst  last"
    assert record.with_frames(1).box_keys == ["v#0"]


def test_caches_know_the_number_of_frames(folder: Path, toy_paths: dict[str, str]) -> None:
    cache = {"caches": {"token_cache": str(folder / "cache")}}
    for frames in (FRAMES, 2, FRAMES):
        dataset = build(folder, toy_paths, {"frames": frames}, box_path=None, **cache)
        assert dataset[0]["input_ids"].count(IMAGE_TOKEN_INDEX) == frames


# -- in a model -----------------------------------------------------------------------------------------------------


def system(toy_paths: dict[str, str], **changes: Any) -> Any:
    return toy.build_model(toy_paths, "full", **changes).eval()


POOLED = {"frame_pooler": {"type": "mg_llava.FramePooling"}}


def test_equal_frames_have_the_tokens_of_the_picture_times_their_number(toy_paths: dict[str, str]) -> None:
    model = system(toy_paths)
    canvas = torch.randint(0, 256, (1, 3, toy.CANVAS, toy.CANVAS), dtype=torch.uint8)
    boxes = torch.tensor([[3.0, 4.0, 30.0, 40.0], [1.0, 1.0, 9.0, 9.0]])
    frames = {"canvas": canvas.repeat(FRAMES, 1, 1, 1), "boxes": [boxes] * FRAMES, "frames": [True] * FRAMES}
    seen = [torch.cat([segment.tokens for segment in segments]) for segments in model.see(frames)]
    # the same batch, one frame of which is taken as a picture: sizes of batches change the rounding of matrix products
    picture = model.see({**frames, "frames": [False] * FRAMES})[0]
    picture_tokens = torch.cat([segment.tokens for segment in picture])
    assert len(seen) == FRAMES and all(torch.equal(tokens, picture_tokens) for tokens in seen)
    alone = model.see({"canvas": canvas, "boxes": [boxes]})[0]
    torch.testing.assert_close(picture_tokens, torch.cat([segment.tokens for segment in alone]))


def test_pooled_frames_are_means(toy_paths: dict[str, str]) -> None:
    model = system(toy_paths, **POOLED)
    assert model.token_count == TokenCount(per_canvas=4, per_frame=1)
    canvas = torch.randint(0, 256, (2, 3, toy.CANVAS, toy.CANVAS), dtype=torch.uint8)
    boxes = [torch.tensor([[3.0, 4.0, 30.0, 40.0]])] * 2
    frame, picture = model.see({"canvas": canvas, "boxes": boxes, "frames": [True, False]})
    whole, _ = model.see({"canvas": canvas, "boxes": boxes})
    torch.testing.assert_close(frame[0].tokens, whole[0].tokens.mean(dim=0, keepdim=True))
    assert len(picture[0].tokens) == 4 and torch.equal(frame[1].tokens, whole[1].tokens)


def test_pooling_by_loops() -> None:
    tokens = torch.randn(25, 3)
    pooled = MODELS.build({"type": "mg_llava.FramePooling"})(tokens)
    grid = tokens.view(5, 5, 3)
    for row in range(3):
        for column in range(3):
            cells = grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1, 3)
            torch.testing.assert_close(pooled[3 * row + column], cells.mean(dim=0))


@pytest.mark.parametrize("changes", [{}, POOLED], ids=["all tokens", "pooled"])
def test_rows_of_a_mixed_batch_have_their_own_losses(
    changes: dict[str, Any], folder: Path, toy_paths: dict[str, str]
) -> None:
    model = system(toy_paths, **changes)
    dataset = build(folder, toy_paths, tokens=model.token_count)
    samples = [dataset[index] for index in range(3)]
    together = model(collate(samples)["data"], mode="tensor")
    labels = together["inputs"].labels
    for row, sample in enumerate(samples):
        alone = model(collate([sample])["data"])["loss"]
        logits, wanted = together["logits"][row, :-1], labels[row, 1:]
        loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100)
        torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)
