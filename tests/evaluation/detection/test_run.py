"""Raw and refined objects of a model's pictures: scores, box files and drawings, by shift and arm, and the command."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mg_llava.data.boxes.store import open_box_store
from mg_llava.evaluation.detection.run import evaluate_objects
from mg_llava.evaluation.detection.shifts import Shift
from mg_llava.inference.naming import Naming
from mg_llava.inference.objects import ObjectFinder
from tests.contract import cases
from tests.inference.test_objects import predictor
from tests.models.systems.test_refinement import build
from tests.run import run_tool

LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]


def write_pictures(folder: Path, count: int) -> str:
    """Pictures of noise with an object each; returns the file of COCO's annotations."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        place = {"id": number, "image_id": number, "category_id": 1 + number % 3}
        annotations.append({**place, "bbox": [4, 5, 30, 20], "area": 600, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(LABELS, start=1)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(file)


def test_before_training_nothing_is_gained(tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path / "toys")
    asked = predictor(paths, build(paths))
    instances, told = write_pictures(tmp_path, 3), []
    finders = {
        "head": ObjectFinder(asked.model, asked.front_end, "head"),
        "language": ObjectFinder(asked.model, asked.front_end, "language", Naming(threshold=1.0)),
    }
    out = tmp_path / "out"
    out.mkdir()
    shifts = [Shift(), Shift("noise", 30)]
    settings = {"shifts": shifts, "draws": 10, "show": 1, "progress": told.append}
    results = evaluate_objects(finders, instances, str(tmp_path / "images"), out, **settings)
    assert list(results) == ["clean", "noise:30"] and json.loads((out / "results.json").read_text()) == results
    for found in results.values():
        assert list(found) == ["raw", "head", "language"] and len(found["raw"]["numbers"]) == 12
        for arm in ("head", "language"):  # nothing is sure enough to be named
            assert found[arm]["numbers"] == found["raw"]["numbers"]
            assert found[arm]["gain"]["AP"] == {"mean": 0, "low": 0, "high": 0, "n": 3}
    assert len(told) == 6 and told[0].startswith("clean raw: AP ")
    raw, refined = (open_box_store(out / f"{arm}_clean.json") for arm in ("raw", "head"))
    assert list(raw.keys()) == ["001", "002", "003"]
    assert np.array_equal(raw.get("002").boxes, refined.get("002").boxes) and len(raw.get("002"))
    assert not np.array_equal(raw.get("001").boxes, open_box_store(out / "raw_noise_30.json").get("001").boxes)
    names = sorted(file.name for file in out.glob("*.png"))
    assert names == [f"{arm}_{shift}_001.png" for arm in ("head", "language") for shift in ("clean", "noise_30")]
    width, height = Image.open(out / names[0]).size
    assert width > 2 * height


def test_the_command(tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path / "toys")
    system = build(paths)
    config = {
        "model": {**cases.SYSTEMS["MRMLLM"](paths)},
        "tokenizer": {
            "type": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": paths["llm"],
        },
        "prompt_template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": system.canvas_size},
        "prompt_parts": [{"type": "mg_llava.PerceptionPrompt", "threshold": 0.2, "most": 2}],
    }
    config["model"]["llm"] = {**config["model"]["llm"], "tuning": "frozen"}
    Config(config).dump(tmp_path / "config.py")
    torch.save({"state_dict": system.state_dict()}, tmp_path / "iter_1.pth")
    given = ("--instances", write_pictures(tmp_path, 2), "--images", tmp_path / "images", "--out", tmp_path / "out")
    model = (tmp_path / "config.py", "--checkpoint", tmp_path / "iter_1.pth", "--device", "cpu")
    done = run_tool("refine", *model, *given, "--shift", "blur:1", "--draws", 5, "--limit", 1)
    assert done.status == 0, done.err
    assert "blur:1 head: AP" in done.out
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text()).values()
    assert found["head"]["numbers"] == found["raw"]["numbers"]
    alone = run_tool("refine", *model, "--image", tmp_path / "images" / "002.png", "--out", tmp_path / "drawn")
    assert alone.status == 0, alone.err
    assert [file.name for file in (tmp_path / "drawn").iterdir()] == ["head_clean_002.png"]
    wrong = run_tool("refine", *model, *given, "--shift", "fog:1")
    assert wrong.status == 1 and "write KIND:SEVERITY" in wrong.err
