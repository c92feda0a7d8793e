"""Tags without and with a model."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.data.records.schema import RecordError
from mg_llava.detection.taggers import OpenCLIPTagger, RAMPlusTagger
from mg_llava.detection.tags import FixedTags, PictureName, TagFile, read_tag_list
from mg_llava.registry import TAGGERS
from tests.detection import toys


def noise(size, seed):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_lists(tmp_path):
    assert len(read_tag_list("coco80")) == 80 and read_tag_list("coco80")[-1] == "toothbrush"
    common = read_tag_list("common")
    assert len(common) == len(set(common)) > 800 and not any(tag.startswith("#") for tag in common)
    (tmp_path / "mine.txt").write_text("# mine\nCat\n\n dog \ncat\n")
    image = Image.new("RGB", (4, 4))
    assert FixedTags(tmp_path / "mine.txt")([image]) == [("cat", "dog")]
    assert TAGGERS.build(dict(type="FixedTags", tags=["A  b", ""]))([image] * 2) == [("a b",)] * 2
    assert FixedTags([])([image]) == [()]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="is empty"):
        FixedTags(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="one of coco80, common"):
        FixedTags("coco81")


def test_a_byte_order_mark_is_no_part_of_tags(tmp_path):
    files = {"list.txt": "dog\ncat\n", "t.json": '{"1": ["a"]}', "t.jsonl": '{"id": "1", "tags": ["a"]}\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8-sig")
    assert read_tag_list(tmp_path / "list.txt") == ("dog", "cat")
    for name in ("t.json", "t.jsonl"):
        assert TagFile(tmp_path / name)([None], [PictureName("1")]) == [("a",)]


def test_tags_for_each_picture(tmp_path):
    (tmp_path / "tags.json").write_text(json.dumps({"1": ["Cat"], "2": "dog | a  car"}))
    image, names = Image.new("RGB", (4, 4)), [PictureName("2"), PictureName("1")]
    assert TagFile(tmp_path / "tags.json")([image] * 2, names) == [("dog", "a car"), ("cat",)]
    with pytest.raises(RecordError, match="no tags for id '3'"):
        TagFile(tmp_path / "tags.json")([image], [PictureName("3")])
    assert TagFile(tmp_path / "tags.json", missing="empty")([image], [PictureName("3")]) == [()]
    (tmp_path / "tags.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(RecordError, match="is no tag file"):
        TagFile(tmp_path / "tags.jsonl")


def test_open_clip(tmp_path):
    folder = toys.write_open_clip(tmp_path / "clip")
    tagger = OpenCLIPTagger(folder, tags="coco80", top_k=4)
    images = [
        noise(size, seed) for seed, size in enumerate([(64, 64), (90, 40), (1, 1), (20_000, 100), (100, 20_000)])
    ]
    found = tagger(images)
    assert found == [tagger([image])[0] for image in images] and tagger([]) == []
    assert all(len(tags) == 4 and set(tags) <= set(read_tag_list("coco80")) for tags in found)
    assert len(set(found)) > 1  # the pictures make a difference

    # The same as open_clip's own functions, on a picture that needs no fitting.
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1).float()[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.visual.image_mean, model.visual.image_std))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of {tag}" for tag in tagger.tags])
    with torch.no_grad():
        pictures, texts = model.encode_image((pixels - mean) / std, True), model.encode_text(tokens, True)
    order = (pictures @ texts.T)[0].argsort(descending=True)[:4].tolist()
    assert found[0] == tuple(tagger.tags[i] for i in order)

    assert OpenCLIPTagger(folder, tags=["a", "b"], min_similarity=1.1)([images[0]]) == [()]
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json"):
        OpenCLIPTagger(str(tmp_path))


def test_ram_with_the_settings_of_the_reference(tmp_path, monkeypatch):
    seen = {}

    class Model(torch.nn.Module):
        def generate_tag(self, pixels):
            seen["shape"] = tuple(pixels.shape)
            return ["Dog | running, fast", ""][: len(pixels)], [""] * len(pixels)

    def ram_plus(**settings):
        seen.update(settings)
        print("vit: swin_l")
        return Model()

    package, models = ModuleType("ram"), ModuleType("ram.models")
    package.get_transform = lambda image_size: lambda image: torch.zeros(3, image_size, image_size)
    models.ram_plus = ram_plus
    (tmp_path / "ram.pth").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "ram", None)
    with pytest.raises(ImportError, match="needs the package 'ram'"):
        RAMPlusTagger(tmp_path / "ram.pth")
    monkeypatch.setitem(sys.modules, "ram", package)
    monkeypatch.setitem(sys.modules, "ram.models", models)
    tagger = RAMPlusTagger(tmp_path / "ram.pth")
    assert tagger([Image.new("RGB", (9, 5))] * 2) == [("dog", "running fast"), ()]
    assert seen["shape"] == (2, 3, 384, 384)
    assert seen["image_size"] == 384 and seen["vit"] == "swin_l" and seen["pretrained"].endswith("ram.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        RAMPlusTagger(tmp_path / "none.pth")
