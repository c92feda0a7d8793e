"""The command that measures Lyrics' first stage."""

import json
from pathlib import Path

import torch
from mmengine.config import Config

from mg_llava.registry import MODELS
from tests import toy
from tests.contract import cases
from tests.run import run_tool


def test_a_checkpoint_is_measured_on_other_records(tmp_path: Path) -> None:
    paths, data = cases.write_all(tmp_path / "toys"), toy.write_data(tmp_path / "data", records=8)
    model = cases.SYSTEMS["LyricsPretrain"](paths)
    torch.manual_seed(0)
    torch.save(dict(MODELS.build(model).state_dict()), tmp_path / "stage1.pth")
    dataset = {
        "type": "mg_llava.LLaVADataset",
        "data_path": "nowhere.json",
        "image_folder": None,
        "tokenizer": paths["llm"],
        "template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": 64},
        "boxes": {"extra": {"type": "mg_llava.PieceWriter", "vocabulary": toy.PIECES}},
    }
    Config({"model": model, "train_dataloader": {"dataset": dataset}}).dump(tmp_path / "config.py")
    given = [tmp_path / "config.py", "--checkpoint", tmp_path / "stage1.pth"]
    files = [word for name, path in data.items() for word in (f"--{name.replace('_', '-')}", path)]
    ran = run_tool("measure_grounding", *given, *files, "--out", tmp_path / "out.json")
    assert ran.status == 0, ran.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["pictures"] == 7 and 0 <= found["with_items"]["match"] <= 1
    ran = run_tool("measure_grounding", *given)
    assert ran.status == 1 and "nowhere.json" in ran.err
    Config({"model": cases.SYSTEMS["Lyrics"](paths)}).dump(tmp_path / "config.py")
    ran = run_tool("measure_grounding", *given, *files)
    assert ran.status == 1 and "is no first stage of Lyrics" in ran.err
