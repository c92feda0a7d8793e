"""The feature cache: never stale, whatever a kill leaves; what it lacks is refused or counted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mg_llava.data.boxes.augment import BoxAugmentation
from mg_llava.data.features.cache import FeatureCache, FeatureError
from mg_llava.data.features.fill import Pictures, list_jobs, survey_cache
from mg_llava.data.mixture import MixtureDataset
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.places import place_of
from mg_llava.features import Features
from mg_llava.inspection.browse.samples import view_sample
from tests import features, toy
from tests.settings import grouped
from tests.work.test_tar_files import write_tar

COUNT = 10  # pictures of the 12 records: nine records have them, one of them two


class CountingExtractor:
    """In place of encoders: features that are read off the pictures and their boxes; counts pictures."""

    box_projector = True
    sizes = {"low": [4, 3], "high": [4, 2], "pooled": 5}

    def __init__(self):
        self.seen, self.limit = 0, None

    def describe(self):
        return {"weights": "none"}

    def __call__(self, images, boxes):
        if self.limit is not None and self.seen >= self.limit:
            raise KeyboardInterrupt
        self.seen += len(images)
        mean = images.float().mean(dim=(1, 2, 3))
        low = mean[:, None, None] * torch.arange(1.0, 13).view(4, 3)
        high = mean[:, None, None, None] * torch.arange(1.0, 9).view(2, 2, 2)
        pooled = torch.cat(list(boxes)) @ torch.arange(20.0).view(4, 5)
        return Features(low, high, pooled if self.box_projector else None)


@pytest.fixture
def data(tmp_path):
    return toy.write_data(tmp_path / "data", records=12)


@pytest.fixture
def extractor():
    return CountingExtractor()


@pytest.fixture
def llm(toy_paths):
    return toy_paths["llm"]


@pytest.fixture
def filled(data, llm, extractor, tmp_path):
    """A folder that was filled for the data."""
    report = features.fill(features.make_source(data, llm), tmp_path / "features", extractor)
    assert report["pictures"] == {"absent": COUNT} and report["added"] == COUNT and report["error"] == 0
    return tmp_path / "features"


def test_pictures_in_tar_files_have_the_features_that_they_have_in_a_folder(data, llm, extractor, filled, tmp_path):
    images = Path(data["image_folder"])
    files = [(path.relative_to(images).as_posix(), path.read_bytes()) for path in sorted(images.rglob("*.*"))]
    folder = write_tar(tmp_path / "all.tar", files)
    changes = dict(image_folder=folder, feature_cache=str(filled), missing_features="error")
    source = features.make_source(data, llm, **changes)
    plain = features.make_source(data, llm, feature_cache=str(filled), missing_features="error")
    for number in range(len(plain)):
        own, theirs = (one[number].get("features", []) for one in (source, plain))
        assert len(own) == len(theirs)
        assert all(torch.equal(a[key], b[key]) for a, b in zip(own, theirs, strict=True) for key in a)
    seen = extractor.seen
    assert features.fill(source, filled, extractor)["pictures"] == {"known": COUNT} and extractor.seen == seen
    changed = [(name, content + b" ") for name, content in files]
    other = features.make_source(data, llm, image_folder=write_tar(tmp_path / "changed.tar", changed))
    assert features.fill(other, tmp_path / "anew", extractor)["pictures"] == {"absent": COUNT}
    with pytest.raises(FeatureError, match="was changed since"):
        FeatureCache(filled).find(files[0][0], place_of(other.image_folder, files[0][0]))


def check_sample(sample, plain):
    """A sample with features says what the plain one does."""
    assert sample["input_ids"] == plain["input_ids"] and sample["images"] == [] and len(sample["boxes"]) > 0
    for arrays, image, boxes, own in zip(
        sample["features"], plain["images"], plain["boxes"], sample["boxes"], strict=True
    ):
        assert torch.equal(own, boxes)
        expected = CountingExtractor()(image[None], [boxes])
        assert torch.equal(arrays["low"], expected.low[0]) and torch.equal(arrays["pooled"], expected.pooled)
        assert torch.equal(arrays["high"], expected.high[0].permute(1, 2, 0).flatten(0, 1))


def test_samples_hold_features_of_their_boxes(data, llm, filled):
    for changes in (
        {},
        {"shuffle_boxes": True},
        {"context_length": 150, "tokens_per_image": 4, "long_text_margin": 130},  # long texts: one box a label
        {"context_length": 40, "tokens_per_image": 4},  # room for a few boxes
        {"box_augmentation": BoxAugmentation(drop_all=0.5)},
    ):
        plain = features.make_source(data, llm, **changes)
        cached = features.make_source(data, llm, feature_cache=filled, **changes)
        samples = list(DataLoader(cached, None, num_workers=2))
        for index in range(len(plain)):
            if plain.record(index).images:
                check_sample(samples[index], plain[index])
            else:
                assert samples[index] == plain[index]


def test_browsing_shows_pixels_all_the_same(data, llm, filled):
    plain, cached = (features.make_source(data, llm, feature_cache=folder) for folder in (None, filled))
    assert view_sample(cached, 1).to_dict() == view_sample(plain, 1).to_dict()


def test_shared_pictures_are_kept_once_with_the_boxes_of_all(data, llm, extractor, tmp_path):
    rows = json.loads(open(data["data_path"]).read())
    rows[2]["image"] = rows[0]["image"]
    open(data["data_path"], "w").write(json.dumps(rows))
    boxes = json.loads(open(data["box_path"]).read())
    next(item for item in boxes if item["id"] == "toy_2")["boxes"] = [[1, 2, 9, 9], [3, 3, 30, 30]]
    open(data["box_path"], "w").write(json.dumps(boxes))
    plain = features.make_source(data, llm)
    assert features.fill(plain, tmp_path / "f", extractor)["added"] == COUNT - 1
    cached = features.make_source(data, llm, feature_cache=tmp_path / "f")
    for index in (0, 2):
        check_sample(cached[index], plain[index])


def test_a_killed_fill_goes_on(data, llm, extractor, tmp_path):
    folder, source = tmp_path / "features", features.make_source(data, llm)
    extractor.limit = 6
    with pytest.raises(KeyboardInterrupt):
        features.fill(source, folder, extractor)
    for path in folder.glob("*.index"):  # a kill while an entry is written, and one while features are
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"lacks 5 of 10 pictures, such as those of record 'toy_\d', .*fill it with"):
        features.make_source(data, llm, feature_cache=folder)
    extractor.limit = None
    assert features.fill(source, folder, extractor)["pictures"] == {"known": 5, "absent": 5}
    cached = features.make_source(data, llm, feature_cache=folder)
    for index in (0, 1, 2, 10):
        check_sample(cached[index], source[index])
    assert features.fill(source, folder, extractor)["added"] == 0


def test_a_fill_without_boxes_goes_on(data, llm, extractor, tmp_path):
    """As for systems that pool none."""
    extractor.box_projector, extractor.sizes = False, extractor.sizes | {"pooled": None}
    source = features.make_source(data, llm, box_path=None)
    for state in ("absent", "known"):
        assert features.fill(source, tmp_path / "features", extractor)["pictures"] == {state: COUNT}


@pytest.mark.parametrize("after", [3, COUNT])
def test_a_folder_that_is_gone_is_no_success(data, llm, tmp_path, after):
    """Whether it goes while pictures are added, or before the last of them is on the disk."""

    class Remover(CountingExtractor):
        def __call__(self, images, boxes):
            found = super().__call__(images, boxes)
            if self.seen >= after:
                shutil.rmtree(tmp_path / "features", ignore_errors=True)
            return found

    with pytest.raises(FileNotFoundError, match="was removed while it was written"):
        features.fill(features.make_source(data, llm), tmp_path / "features", Remover(), shard_bytes=10**6)


@pytest.mark.parametrize("field", ["size", "time", "content", "width", "height", "boxes", "offset", "key"])
def test_a_flipped_bit_in_an_entry_is_never_trusted(data, llm, filled, extractor, field):
    from mg_llava.data.features.file import STORED_FIELDS
    from mg_llava.work.blobs import entry_dtype

    source = features.make_source(data, llm)
    for path in filled.glob("*.index"):
        entries = np.frombuffer(path.read_bytes(), entry_dtype(STORED_FIELDS)).copy()
        entries[field] ^= 2
        path.write_bytes(entries.tobytes())
    assert len(FeatureCache(filled)) == 0
    assert features.fill(source, filled, extractor)["added"] == COUNT
    cached = features.make_source(data, llm, feature_cache=filled)
    for index in (0, 2):
        check_sample(cached[index], source[index])


def test_features_that_were_not_written_are_noticed(data, llm, filled):
    cached = features.make_source(data, llm, feature_cache=filled)
    path = min(filled.glob("*.features"))
    content = bytearray(path.read_bytes())
    content[100:130] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(FeatureError, match=r"is damaged in .*; delete this shard"):
        cached[0]
    path = max(filled.glob("*.features"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeatureError, match="is damaged"):
        cached[10]


def test_changed_pictures_and_boxes_are_noticed(data, llm, filled, extractor, monkeypatch):
    path = os.path.join(data["image_folder"], "0_0.png")
    cached = features.make_source(data, llm, feature_cache=filled)
    expected = cached[0]["features"][0]["low"]
    os.utime(path, (1, 1))  # touched, but the same
    assert torch.equal(cached[0]["features"][0]["low"], expected)
    size = os.path.getsize(path)
    content = open(path, "rb").read()
    open(path, "wb").write(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    assert os.path.getsize(path) == size
    with pytest.raises(FeatureError, match=r"record 'toy_0' .*0_0.png was changed since .*missing_features='picture'"):
        cached[0]
    open(path, "wb").write(content)
    boxes = json.loads(open(data["box_path"]).read())
    boxes[0]["boxes"][0][2] += 2
    open(data["box_path"], "w").write(json.dumps(boxes))
    other = features.make_source(data, llm, feature_cache=filled)
    with pytest.raises(FeatureError, match=r"1 of 2 boxes, such as \[.*\], are not in feature cache"):
        other[0]
    Image.new("RGB", (50, 60)).save(os.path.join(data["image_folder"], "2_0.png"))
    source = features.make_source(data, llm)
    counts = survey_cache(Pictures([source], list_jobs([source]), FeatureCache(filled), True))
    assert counts == {"known": COUNT - 2, "changed": 2}
    assert features.fill(source, filled, extractor)["added"] == 2
    other = features.make_source(data, llm, feature_cache=filled)
    for index in (0, 2):
        check_sample(other[index], source[index])


def test_missing_features(data, llm, filled, extractor):
    rows = json.loads(open(data["data_path"]).read())
    shutil.copy(os.path.join(data["image_folder"], "0_0.png"), os.path.join(data["image_folder"], "new.png"))
    rows += [{**rows[0], "image": name} for name in ("new.png", "0_0.png")]
    open(data["data_path"], "w").write(json.dumps(rows))
    with pytest.raises(ValueError, match="lacks 1 of 12 pictures, such as those of record 'toy_0'"):
        features.make_source(data, llm, feature_cache=filled)
    source = features.make_source(data, llm, feature_cache=filled, missing_features="picture")
    assert source.features.absent == 1 and source.report()["encoded_anew"] == 0
    samples = list(DataLoader(source, None, num_workers=2))
    assert "features" not in samples[12] and len(samples[12]["images"]) == 1
    assert "features" in samples[13] and source.report()["encoded_anew"] == 1
    with pytest.raises(ValueError, match="missing_features is 'skip'; allowed: 'error', 'picture'"):
        features.make_source(data, llm, feature_cache=filled, missing_features="skip")


def test_pictures_that_cannot_be_read(data, llm, extractor, tmp_path):
    folder = tmp_path / "features"
    os.remove(os.path.join(data["image_folder"], "0_0.png"))
    with open(os.path.join(data["image_folder"], "2_0.png"), "wb") as file:
        file.write(b"no picture")
    report = features.fill(features.make_source(data, llm), folder, extractor)
    assert report["pictures"] == {"absent": COUNT - 2, "unreadable": 2}
    assert "0_0.png" in report["unreadable"][0] and "record 'toy_2'" in report["unreadable"][1]
    cached = features.make_source(data, llm, feature_cache=folder)
    for index in (0, 2):
        with pytest.raises(PictureError):
            cached[index]
    skipping = features.make_source(data, llm, feature_cache=folder, bad_image="skip")
    assert skipping[0]["id"] == "toy_1" and skipping.report()["skipped"]["bad_image"] == 1
    assert features.fill(features.make_source(data, llm), folder, extractor)["added"] == 0
    shutil.copy(os.path.join(data["image_folder"], "4_0.png"), os.path.join(data["image_folder"], "0_0.png"))
    assert features.fill(features.make_source(data, llm), folder, extractor)["added"] == 1


def test_settings_that_do_not_fit(data, llm, filled, extractor, tmp_path):
    with pytest.raises(FileNotFoundError, match="none holds no feature cache; fill it with"):
        features.make_source(data, llm, feature_cache=tmp_path / "none")
    processor = {"type": "mg_llava.PictureProcessor", "image_size": 96, "mode": "exact"}
    with pytest.raises(ValueError, match="image_size was 64, now 96; mode was reference, now exact"):
        features.make_source(data, llm, feature_cache=filled, picture_processor=processor)
    for augmentation in (BoxAugmentation(jitter=0.1), BoxAugmentation(dropout=0.1), lambda boxes, size, rng: boxes):
        with pytest.raises(ValueError, match=r"may drop all boxes of a picture .* but not choose or move boxes"):
            features.make_source(data, llm, feature_cache=filled, box_augmentation=augmentation)
    extractor.describe = lambda: {"weights": "others"}
    with pytest.raises(ValueError, match=r"for something else \(weights is none, wanted others\); use another folder"):
        features.fill(features.make_source(data, llm), filled, extractor)
    about = json.loads((filled / "about.json").read_text())
    (filled / "about.json").write_text(json.dumps({**about, "version": 9}))
    with pytest.raises(ValueError, match=r"is of mg_llava.features 9, this program reads"):
        FeatureCache(filled)


def test_records_are_read_once_and_sources_share(data, llm, filled, monkeypatch):
    features.make_source(data, llm, feature_cache=filled)
    monkeypatch.setattr("mg_llava.data.features.source.picture_key", None)
    settings = {"tokenizer": llm, "template": "vicuna", "long_text_margin": None}
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    text = {**data, "box_path": None, "picture_processor": processor}
    mixture = MixtureDataset(
        [data, grouped(**text, name="half", max_dataset_length=12, missing_box="empty")],
        **grouped(**settings, feature_cache=str(filled), picture_processor=processor),
    )
    first, second = mixture.sources
    assert first.features.cache is second.features.cache
    assert mixture[len(first)]["features"][0]["pooled"].shape == (1, 5)  # the stand-in, pooled beside the boxes
    shares = [{job.name for job in list_jobs(mixture.sources, rank, 3)} for rank in range(3)]
    assert sum(map(len, shares)) == len(set.union(*shares)) == COUNT
    assert np.array_equal(first.features.cache.has(np.array([1, 2], dtype=np.uint64)), [False, False])
