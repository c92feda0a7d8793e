"""The pipeline for a fresh picture: as a function, as a proposer, and from short texts."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.inputs import make_boxes
from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.detector import Detector
from mg_llava.detection.files import ProposalDetector
from mg_llava.detection.pipeline import BoxPipeline, build_pipeline, pipeline_config
from tests.detection import toys
from tests.run import run_tool


class Corner(Detector):
    """A box for each tag at the left upper corner, and one more outside."""

    def prepare(self, image):
        return image.size

    def detect(self, prepared, sizes, tags, names):
        assert all(tags)
        box = [[-1, -1, 10, 10]]
        return [
            BoxRecord(np.array(box * len(t) + [[99, 99, 120, 120]]), np.full(len(t) + 1, 0.5), (*t, "out"))
            for t in tags
        ]


PIPELINE = BoxPipeline(Corner(), dict(type="FixedTags", tags=["a", "b"]))


def test_pictures_of_any_mode_and_no_tags():
    images = [Image.new(mode, (20, 15)) for mode in ("RGB", "L", "RGBA", "P", "I;16")]
    found = PIPELINE(images)
    assert [record.boxes.tolist() for record in found] == [[[0, 0, 10, 10]] * 2] * 5
    assert found[0].labels == ("a", "b") and PIPELINE([]) == []
    assert len(BoxPipeline(Corner(), dict(type="FixedTags", tags=[])).propose(images[0])) == 0
    assert len(BoxPipeline(Corner(), dict(type="FixedTags", tags=["a", "b"]), max_boxes=1).propose(images[0])) == 1
    with pytest.raises(ValueError, match="looks for tags"):
        BoxPipeline(Corner())


def test_as_proposer(tmp_path):
    with ThreadPoolExecutor(4) as pool:  # as a Predictor calls it
        found = list(pool.map(PIPELINE.propose, [Image.new("RGB", (20, 15))] * 8))
    assert all(make_boxes(record).labels == ("a", "b") for record in found)
    image = Image.new("RGB", (60, 50))
    image.paste("white", (10, 10, 20, 25))
    (tmp_path / "boxes.json").write_text("[]")
    proposer = dict(type="mg_llava.BoxProposer", detector=dict(type="ProposalDetector"))
    store = open_box_store(tmp_path / "boxes.json", missing="detect", proposer=proposer)
    assert store.get("new", image).boxes.tolist() == [[10, 10, 20, 25]]


def test_short_texts(tmp_path):
    config = pipeline_config("owlv2:folder", "ram:x.pth", threshold=0.3, dtype="bfloat16", max_boxes=9)
    assert config["detector"] == {"type": "OWLv2Detector", "path": "folder", "dtype": "bfloat16", "threshold": 0.3}
    assert config["tagger"] == {"type": "RAMPlusTagger", "checkpoint": "x.pth", "dtype": "bfloat16"}
    assert config["max_boxes"] == 9 and pipeline_config("proposals") == {"detector": {"type": "ProposalDetector"}}
    assert pipeline_config("proposals", "Cat, dog")["tagger"] == {"type": "FixedTags", "tags": ["cat", "dog"]}
    (tmp_path / "boxes.py").write_text("box_pipeline = dict(detector=dict(type='ProposalDetector'), max_boxes=3)\n")
    assert build_pipeline(str(tmp_path / "boxes.py")).rules.max_boxes == 3
    (tmp_path / "boxes.json").write_text(json.dumps({"detector": {"type": "ProposalDetector"}}))
    assert isinstance(build_pipeline(str(tmp_path / "boxes.json")).detector, ProposalDetector)
    for wrong, message in (("owl2:x", "is 'owlv2' meant"), ("owlv2", "owlv2:PATH"), (str(tmp_path), "unknown")):
        with pytest.raises(ValueError, match=message):
            pipeline_config(wrong)
    for wrong in ("rams:x", "coco", ",", "coco:80"):
        with pytest.raises(ValueError, match=r"is unknown|is empty"):
            pipeline_config("proposals", wrong)


def test_a_predictor_takes_it(toy_paths):
    from mg_llava.inference import Predictor
    from tests import toy

    processor = dict(type="mg_llava.PictureProcessor", image_size=toy.CANVAS)
    model = toy.build_model(toy_paths)
    predictor = Predictor(model, toy_paths["llm"], "vicuna", processor, proposer=PIPELINE.propose, max_new_tokens=2)
    answer = predictor.predict(Image.new("RGB", (40, 30)), "What is there?")
    np.testing.assert_allclose(answer.boxes, [[0, 0, 10, 10]] * 2, atol=1)
    assert answer.pictures[0].labels == ("a", "b")
    assert len(predictor.predict(Image.new("RGB", (40, 30)), "What is there?", boxes=[]).boxes) == 0


def test_benchmark(tmp_path):
    model = toys.write_owlv2(tmp_path)
    sizes = ["--pictures", 5, "--batch-size", 2, "--rounds", 1]
    result = run_tool("benchmark", "boxes-pipeline", *sizes, "--model", model).result
    assert result["benchmark"] == "boxes-pipeline" and result["boxes"] > 20 and result["error"] < 0.01
    for key, other in (("speedup", "plain"), ("speedup_of_batching", "one")):
        assert result[key] == pytest.approx(result["per_s"]["batched"] / result["per_s"][other], rel=0.05, abs=0.05)
