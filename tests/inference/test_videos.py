"""A video reaches the model as the same tensors in training, from the predictor and from the processor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.pictures.video import read_frames
from mg_llava.hf import MGLLaVAImageProcessor, MGLLaVAProcessor
from mg_llava.inference import Predictor, Request
from mg_llava.inference.batching import DecodedPictures, PictureGroup, PreparedRequest, joined
from mg_llava.inference.encoding import RequestEncoder, Statistics
from tests import toy
from tests.hf import conftest
from tests.settings import grouped
from tests.videos import write_video

FRAMES = 3
QUESTION = "<video>\nwhat is there?"
BOXES = [[[4 + 5 * n, 6, 30 + 5 * n, 30], [10, 10, 20, 40]] for n in range(FRAMES)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", frames=9)


def settings_of(pad: bool) -> dict[str, Any]:
    return {"image_size": toy.CANVAS, "video": {"frames": FRAMES, "pad_to_square": pad}}


@pytest.fixture(params=[True, False], ids=["padded", "cropped"])
def trained(
    request: pytest.FixtureRequest, clip: Path, toy_paths: dict[str, str], tmp_path: Path
) -> Mapping[str, Any]:
    """The batch of a training sample, and the processor that it was made with."""
    talk = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "two digits"}]
    (tmp_path / "records.json").write_text(json.dumps([{"id": "v", "video": "clip.mp4", "conversations": talk}]))
    records = [
        {"id": f"v#{n}", "boxes": own, "scores": [0.9, 0.8], "labels": ["a", "b"]} for n, own in enumerate(BOXES)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(records))
    processor = PictureProcessor(**settings_of(request.param))
    paths = {"data_path": tmp_path / "records.json", "image_folder": clip.parent, "box_path": tmp_path / "boxes.json"}
    settings = {**paths, "tokenizer": toy_paths["llm"], "template": "vicuna", "picture_processor": processor}
    return {**collate([LLaVADataset(**grouped(**settings))[0]])["data"], "processor": processor}


def scored() -> list[dict[str, Any]]:
    return [{"boxes": own, "scores": [0.9, 0.8], "labels": ["a", "b"]} for own in BOXES]


@pytest.mark.parametrize("given", ["path", "frames"])
def test_the_predictor_and_the_processor_see_what_was_trained(
    given: str, trained: Mapping[str, Any], clip: Path, toy_paths: dict[str, str]
) -> None:
    processor, tokenizer = trained["processor"], AutoTokenizer.from_pretrained(toy_paths["llm"])
    pictures = str(clip) if given == "path" else read_frames(clip, FRAMES, "clip")
    predictor = Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", processor, max_new_tokens=3)
    request = PreparedRequest(predictor.front_end, 0, Request(QUESTION, pictures, scored()))
    decoded = PictureGroup([request]).load()
    assert isinstance(decoded, DecodedPictures) and request.is_video
    seen = [decoded.pictures[number] for number in decoded.chosen[0]]
    own = MGLLaVAProcessor(MGLLaVAImageProcessor(**processor.to_dict()), tokenizer, "vicuna")
    message = [{"role": "user", "content": QUESTION}]
    batch = own(conversation=message, images=pictures, boxes=scored())
    assert batch["frames"].tolist() == trained["frames"] == [True] * FRAMES
    prompt = trained["input_ids"][0, : len(request.ids)].tolist()
    assert request.ids == batch["input_ids"][0].tolist() == prompt
    assert torch.equal(torch.stack([item.pixels for item in seen]), trained["canvas"])
    assert torch.equal(batch["pixel_values"], trained["canvas"])
    for one, two, three in zip(trained["boxes"], seen, batch["boxes"], strict=True):
        assert len(one) == 2 and torch.equal(one, two.boxes) and torch.equal(one, three)
    if given == "path":
        whole = predictor.predict_many([Request(QUESTION, pictures, scored())])[0]
        split = predictor.predict_many([Request(QUESTION, read_frames(clip, FRAMES, "clip"), scored())])[0]
        assert whole.token_ids == split.token_ids


def test_boxes_of_another_number_of_frames_and_damaged_videos_are_refused(
    clip: Path, toy_paths: dict[str, str], tmp_path: Path
) -> None:
    processor = PictureProcessor(**settings_of(True))
    predictor = Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", processor, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"3 pictures or frames need a list of 3 sets of boxes .*, found 2"):
        predictor.predict_many([Request(QUESTION, str(clip), scored()[:2])])
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:400])
    with pytest.raises(PictureError, match=r"broken\.mp4"):
        predictor.predict_many([Request(QUESTION, str(tmp_path / "broken.mp4"))])


def test_a_folder_pools_frames_as_the_trained_model_does(
    clip: Path, toy_paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conftest.PROCESSOR, "video", {"frames": FRAMES, "pad_to_square": False})
    folder = tmp_path / "model"
    model = conftest.write_folder(folder, toy_paths, frame_pooler={"type": "mg_llava.FramePooling"})
    loaded, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(conversation=[{"role": "user", "content": QUESTION}], images=str(clip), boxes=scored())
    read = {**inputs, "input_ids": inputs["input_ids"], "canvas": inputs["pixel_values"]}
    data = {**{name: read[name] for name in ("input_ids", "attention_mask", "canvas", "boxes")}, "labels": None}
    data["labels"] = torch.full_like(data["input_ids"], -100)
    wanted = model({**data, "frames": inputs["frames"].tolist()}, mode="tensor")["logits"]
    with torch.no_grad():
        found = loaded(**inputs).logits
    assert found.shape[1] == inputs["input_ids"].shape[1] - FRAMES + FRAMES * (1 + 2), (
        "one token and two boxes a frame"
    )
    torch.testing.assert_close(found, wanted)
    new = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = Predictor.from_pretrained(folder, max_new_tokens=4).predict(str(clip), QUESTION, scored())
    assert answer.token_ids == tuple(new.tolist()[: len(answer.token_ids)]) and answer.token_ids


def test_a_video_and_pictures_like_its_frames_share_no_prefix(clip: Path, toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, frame_pooler={"type": "mg_llava.FramePooling"}).eval()
    processor = PictureProcessor(toy.CANVAS, video={"frames": FRAMES})
    predictor = Predictor(model, toy_paths["llm"], "vicuna", processor)
    frames, pictures = read_frames(clip, FRAMES, "clip"), "<image>" * FRAMES + "\nwhat is there?"
    asked = [Request(question, frames, scored()) for question in (QUESTION, pictures, QUESTION)]
    prepared = [PreparedRequest(predictor.front_end, number, request) for number, request in enumerate(asked)]
    assert prepared[0].ids == prepared[1].ids
    groups = joined([(group, group.load()) for group in map(PictureGroup, ([one] for one in prepared))])
    video, typed, again = RequestEncoder(model, Statistics(), keeps_pixels=False).encode(groups)
    assert len(groups) == 1 and video.length == typed.length - 3 * FRAMES, "a frame has one token of four"
    assert video.prefix == again.prefix != typed.prefix
