"""Every leaf trains two steps through mmengine's runner, with toys in place of its encoders, LLM and data."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import toy
from tests.configs.test_configs import LEAVES, ROOT
from tests.detection import toys
from tests.run import forget_runs, read_losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy.write_data(tmp_path_factory.mktemp("leaves"))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_runs()


def nodes(value: Any) -> Iterator[dict]:
    """All dicts of a config."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from nodes(item)


@pytest.fixture(scope="module")
def annotated(toy_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A toy detector, and the toy boxes with labels that it knows."""
    folder = tmp_path_factory.mktemp("annotated")
    records = json.loads(Path(toy_data["box_path"]).read_text())
    for record in records:
        record["labels"] = ["LABEL_1"] * len(record["boxes"])
    (folder / "targets.json").write_text(json.dumps(records))
    return {"detector": str(toys.write_detr(folder / "detr")), "targets": str(folder / "targets.json")}


def shrink(config: Config, paths: dict[str, str], data: dict[str, str], annotated: dict[str, str]) -> None:
    """Toys in place of what a leaf names; everything else stays as the leaf says."""
    llm = config.tokenizer.pretrained_model_name_or_path
    for node in nodes(config._cfg_dict):
        for key in ("path", "pretrained_model_name_or_path"):
            if node.get(key) == llm:
                node[key] = paths["llm"]
        if "low_res_encoder" in node:
            node["low_res_encoder"].update(path=paths["clip"])
            if (high := node["high_res_encoder"]) is not None:
                high.update(
                    {"path": paths["convnext"]} if "path" in high else {"name": "resnet18", "pretrained": False}
                )
                high.update(image_size=toy.CANVAS)
        if "pieces" in node:
            shrink_refiner(node, paths)
        if "extra" in node:
            node["extra"].update(vocabulary=toy.PIECES)
        if "scene_encoder" in node:
            node["scene_encoder"].update(path=paths["clip"])
            node["detector"] = {
                "type": "mg_llava.TransformerDetector",
                "path": annotated["detector"],
                "dtype": "float32",
            }
            for name in ("scene", "objects", "shared_queries", "refine"):
                if node.get(name):
                    node[name].update(width=16, heads=2)
        if "targets" in node:
            node["targets"] = annotated["targets"]
        if "picture_processor" in node:
            node["picture_processor"].update(image_size=toy.CANVAS)
        if "data_path" in node:
            node.update(data)
        if "data_root" in node:
            node["data_root"] = None
    if config.model.llm is not None and config.model.llm.tuning == "qlora":
        config.model.llm.tuning = "lora"  # 4-bit weights need a GPU
    config.model.pretrained_pth = None
    config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    wrapper = {key: config.optim_wrapper[key] for key in ("optimizer", "clip_grad", "accumulative_counts")}
    config.optim_wrapper = {"type": "OptimWrapper", **wrapper}  # mmengine has no mixed precision without a GPU
    config.train_cfg.pop("max_epochs")
    config.train_cfg.max_iters = 2 * wrapper["accumulative_counts"]
    config.default_hooks.logger.interval = config.log_processor.window_size = 1


def shrink_refiner(model: dict, paths: dict[str, str]) -> None:
    """Toys in place of the parts that Lyrics has before its LLM."""
    sizes = dict(width=16, layers=2, heads=2, intermediate=24, positions=256, vocabulary=len(toy.PIECES) + 1)
    model["mq_former"].update(sizes, bert=None)  # which is not here
    model["pieces"].update(vocabulary=toy.PIECES)
    if "name" in model["visual_encoder"]:
        model["visual_encoder"].update(name="test_vit.r160_in1k", checkpoint=None, depth=2)
    else:
        model["visual_encoder"].update(path=paths["clip"])
    if model.get("detector") is None:
        return
    if model.get("box_reader") is not None:
        model["detector"].update(path=paths["convnext"], image_size=toy.CANVAS)
    else:
        model["detector"].update(path=paths["detector"], image_size=64, classes=None)


@pytest.fixture(scope="module")
def toy_folders(toy_paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The toy folders with a detector."""
    return {**toy_paths, "detector": str(toys.write_detr(tmp_path_factory.mktemp("detector")))}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_trains_two_steps(
    leaf: str, toy_folders: dict[str, str], toy_data: dict[str, str], annotated: dict[str, str], tmp_path: Path
) -> None:
    config = Config.fromfile(ROOT / leaf)
    shrink(config, toy_folders, toy_data, annotated)
    config.work_dir, config.experiment_name = str(tmp_path), Path(leaf).stem
    runner = Runner.from_cfg(config)
    runner.train()
    steps = config.train_cfg.max_iters
    losses = read_losses(tmp_path)
    assert sorted(losses) == list(range(1, steps + 1)) and all(map(math.isfinite, losses.values()))
    updates = {int(state["step"]) for state in runner.optim_wrapper.optimizer.state.values()}
    assert updates == {2}
    trained = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    saved = load_training_checkpoint(tmp_path / f"iter_{steps}.pth")
    assert trained <= set(saved) and all(torch.isfinite(saved[name]).all() for name in trained)
