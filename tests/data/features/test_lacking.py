"""What a feature cache lacks: videos, whatever their frames, and pictures that were not filled in."""

import json
import shutil
from pathlib import Path

import pytest

from tests import features, toy
from tests.data.features.test_cache import COUNT, CountingExtractor
from tests.videos import write_video


@pytest.fixture
def data(tmp_path):
    return toy.write_data(tmp_path / "data", records=12)


@pytest.fixture
def llm(toy_paths):
    return toy_paths["llm"]


def with_frames(frames):
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS, "video": {"frames": frames}}
    return {"picture_processor": processor, "box_path": None}


def test_videos_are_opened_beside_cached_pictures_whatever_their_frames(data, llm, tmp_path):
    write_video(Path(data["image_folder"]) / "clip.mp4", frames=9)
    rows = json.loads(open(data["data_path"]).read())
    talk = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "two digits"}]
    rows[4:4] = [{"id": f"clip_{number}", "video": "clip.mp4", "conversations": talk} for number in range(2)]
    open(data["data_path"], "w").write(json.dumps(rows))
    folder = tmp_path / "features"
    report = features.fill(features.make_source(data, llm, **with_frames(8)), folder, CountingExtractor())
    assert report["pictures"] == {"absent": COUNT}
    given = {"feature_cache": folder, "missing_features": "picture"}
    for frames in (8, 16, 8):
        source = features.make_source(data, llm, **given, **with_frames(frames))
        assert source.features.absent == 0
        video, picture = source[4], source[6]
        assert len(video["images"]) == frames and "features" not in video
        assert picture["images"] == [] and len(picture["features"]) == 1
    with pytest.raises(ValueError, match=r"there are 2 videos, which no feature cache holds; set missing_features='p"):
        features.make_source(data, llm, feature_cache=folder, **with_frames(8))
    open(data["data_path"], "w").write(json.dumps(rows[4:6]))
    assert features.make_source(data, llm, **given, **with_frames(8)).features.absent == 0


def test_records_without_features_are_named_once(data, llm, tmp_path):
    folder = tmp_path / "features"
    features.fill(features.make_source(data, llm), folder, CountingExtractor())
    rows = json.loads(open(data["data_path"]).read())
    images = Path(data["image_folder"])
    for number in range(3):
        shutil.copy(images / "0_0.png", images / f"n{number}.png")
    talk = [{"from": "human", "value": "<image><image><image>\nwhat?"}, {"from": "gpt", "value": "two digits"}]
    rows += [{"id": "new", "image": [f"n{number}.png" for number in range(3)], "conversations": talk}]
    open(data["data_path"], "w").write(json.dumps(rows))
    with pytest.raises(ValueError, match="lacks 3 of 13 pictures, such as those of record 'new'; fill it"):
        features.make_source(data, llm, feature_cache=folder, box_path=None)
