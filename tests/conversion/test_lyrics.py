"""The published layout of Lyrics: pickled shards of a BLIP-2 folder, with tagger, detector and image encoder in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from mg_llava.conversion import ConversionError, ConversionOptions, convert, inspect
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.registry import MODELS
from tests.contract import cases

REST = {
    "qformer.embeddings.position_ids": torch.arange(4),
    "vision_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2),
    "ram.visual_encoder.norm.weight": torch.ones(2),
    "grounding_dino.bbox_embed.0.layers.0.bias": torch.ones(2),
}
"""Tensors of the published folder that our checkpoints do not have."""


def published(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors of a toy under the published names, written by hand."""
    given = {}
    for name, tensor in state.items():
        name = re.sub(r"^mq_former\.qformer\.layernorm", f"{prefix}.embeddings.LayerNorm", name)
        name = re.sub(r"^mq_former\.(\w+_embeddings)", rf"{prefix}.embeddings.\1", name)
        name = name.replace("mq_former.query_tokens", "query_tokens")
        name = name.replace("crossattention.attentions.0", "crossattention")
        name = name.replace("crossattention.attentions.1", "detection_crossattention")
        name = re.sub(r"^mq_former\.qformer", prefix, name)
        name = name.replace("projector.model.0", "language_projection").replace("llm.", "language_model.")
        name = name.replace("heads.transform", "qformer.cls.predictions.transform")
        name = name.replace("heads.decoder.bias", "qformer.cls.predictions.bias")
        name = name.replace("heads.decoder", "qformer.cls.predictions.decoder").replace("heads.", "")
        given[name] = tensor
    return given


def write_folder(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    names = sorted(tensors)
    index = {}
    for shard in range(3):
        file = f"pytorch_model-{shard + 1:05d}-of-00003.bin"
        torch.save({name: tensors[name] for name in names[shard::3]}, folder / file)
        index |= dict.fromkeys(names[shard::3], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def built(paths: dict[str, str], name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.manual_seed(5)
    config = cases.SYSTEMS[name](paths)
    if name == "Lyrics":
        config["projector"] = {**config["projector"], "depth": 1}
    return config, dict(MODELS.build(config).state_dict())


def settings(model: dict[str, Any], paths: dict[str, str], folder: Path) -> str:
    loader = "transformers.AutoTokenizer.from_pretrained"
    Config(
        {
            "model": model,
            "tokenizer": {"type": loader, "pretrained_model_name_or_path": paths["llm"]},
            "prompt_template": "vicuna",
            "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": 64},
        }
    ).dump(folder / "config.py")
    return str(folder / "config.py")


def test_published_weights_come_under_our_names(tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path)
    model, state = built(paths, "Lyrics")
    folder = write_folder(tmp_path / "lyrics", {**published(state, "qformer"), **REST})
    options = ConversionOptions(config=settings(model, paths, tmp_path))
    _, report = inspect(folder, options)
    assert not report.problems and not report.unknown and sorted(report.ignored) == sorted(REST)
    convert(folder, tmp_path / "ours.pth", "mmengine", options)
    found = load_training_checkpoint(tmp_path / "ours.pth", dtype=None)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)

    # a group that is not there is named, and so is a key that nobody knows
    lacking = {name: t for name, t in published(state, "qformer").items() if ".detection_cross" not in name}
    lacking["qformer.encoder.layer.0.detection_crossattention.odd"] = torch.ones(1)
    _, report = inspect(write_folder(tmp_path / "lacking", lacking), options)
    assert any("keys are missing: mq_former.qformer.encoder.layer.0.cross" in text for text in report.problems)
    with pytest.raises(ConversionError, match="has weights of Lyrics; give its config"):
        inspect(folder, ConversionOptions())


def test_the_first_stage_and_its_heads(tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path)
    model, state = built(paths, "LyricsPretrain")
    given = published(state, "qformer.bert")
    given["qformer.cls.predictions.decoder.bias"] = given["qformer.cls.predictions.bias"]
    given = {name.replace(".attention.attention.", ".attention.self."): tensor for name, tensor in given.items()}
    torch.save(given, tmp_path / "stage1.pth")
    options = ConversionOptions(config=settings(model, paths, tmp_path))
    convert(tmp_path / "stage1.pth", tmp_path / "ours.pth", "mmengine", options)
    found = load_training_checkpoint(tmp_path / "ours.pth", dtype=None)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
