"""Every way in which weights come in, with every file that would run code: refused by name, and nothing runs."""

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forked, toy
from tests.detection import toys
from tests.engine.conftest import CONFIG
from tests.hf.conftest import write_folder
from tests.hostile import FORMATS

Spoil = Callable[[Path, str], None]
"""Replaces the weights in a folder by a hostile file of this name."""


@pytest.fixture(scope="module")
def folders(toy_paths, tmp_path_factory):
    base = tmp_path_factory.mktemp("doors")
    write_folder(base / "hf", toy_paths)
    toys.write_owlv2(base / "owlv2")
    toys.write_grounding_dino(base / "dino")
    toys.write_open_clip(base / "open_clip")
    (base / "empty").mkdir()
    return {file.name: file for file in base.iterdir()} | {name: Path(path) for name, path in toy_paths.items()}


def open_llm(folder, spoil):
    from mg_llava.models.llm import build_language_model

    spoil(folder, "pytorch_model.bin")
    build_language_model(str(folder))


def open_clip(folder, spoil):
    from mg_llava.models.encoders.clip import CLIPEncoder

    spoil(folder, "pytorch_model.bin")
    CLIPEncoder(str(folder))


def open_convnext(folder, spoil):
    from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder

    spoil(folder, "open_clip_pytorch_model.bin")
    OpenCLIPConvNeXtEncoder(str(folder), toy.CANVAS)


def open_timm(folder, spoil):
    from mg_llava.models.encoders.timm import TimmEncoder

    spoil(folder, "resnet.pth")
    TimmEncoder("resnet18", 64, checkpoint=str(folder / "resnet.pth"))


def open_hugging_face(folder, spoil):
    from mg_llava.hf import MGLLaVAForConditionalGeneration

    spoil(folder, "pytorch_model.bin")
    MGLLaVAForConditionalGeneration.from_pretrained(folder)


def open_owlv2(folder, spoil):
    from mg_llava.detection.owlv2 import OWLv2Detector

    spoil(folder, "pytorch_model.bin")
    OWLv2Detector(str(folder), device="cpu")


def open_grounding_dino(folder, spoil):
    from mg_llava.detection.grounding_dino import GroundingDINODetector

    spoil(folder, "pytorch_model.bin")
    GroundingDINODetector(str(folder), device="cpu")


def open_tagger(folder, spoil):
    from mg_llava.detection.taggers import OpenCLIPTagger

    spoil(folder, "open_clip_pytorch_model.bin")
    OpenCLIPTagger(str(folder), tags=["a"], device="cpu")


def open_judge(folder, spoil):
    from mg_llava.evaluation.judging.run import load_local_judge

    spoil(folder, "pytorch_model.bin")
    load_local_judge(folder)


def open_checkpoint(folder, spoil):
    from mg_llava.models.weights.checkpoint import load_training_checkpoint

    spoil(folder, "iter_1.pth")
    load_training_checkpoint(folder / "iter_1.pth")


def convert(folder, spoil):
    from mg_llava.conversion import convert

    spoil(folder, "iter_1.pth")
    convert(folder / "iter_1.pth", folder / "out.pth", "mmengine")


def add_to_conversion(folder, spoil):
    from mg_llava.conversion import ConversionOptions, convert

    (folder / "adapter_config.json").write_text("{}")
    spoil(folder, "adapter_model.bin")
    convert(folder, folder.with_name("out"), "parts", ConversionOptions(add=[folder]))


DOORS: dict[str, tuple[str, Callable[[Path, Spoil], None]]] = {
    "llm": ("llm", open_llm),
    "clip": ("clip", open_clip),
    "convnext": ("convnext", open_convnext),
    "timm": ("empty", open_timm),
    "hf": ("hf", open_hugging_face),
    "owlv2": ("owlv2", open_owlv2),
    "dino": ("dino", open_grounding_dino),
    "tagger": ("open_clip", open_tagger),
    "judge": ("llm", open_judge),
    "checkpoint": ("empty", open_checkpoint),
    "convert": ("empty", convert),
    "add": ("empty", add_to_conversion),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("door", DOORS)
def test_doors(folders, tmp_path, door, kind):
    source, enter = DOORS[door]
    folder = tmp_path / "folder"
    shutil.copytree(folders[source], folder)
    written = []

    def spoil(folder: Path, name: str) -> None:
        state = {"weight": torch.ones(2)}
        for weights in [*folder.glob("*.safetensors")]:
            state |= load_file(weights)
            weights.unlink()
        FORMATS[kind](folder / name, tmp_path / "trace", state)
        written.append(folder / name)

    with pytest.raises(ValueError, match=r"get it again|save its|[Ss]ave|copy") as refused:
        enter(folder, spoil)
    assert str(written[0]) in str(refused.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("door", ["--resume", "load_from", "pretrained_pth", "test"])
def test_xtuner(tmp_path, monkeypatch, door, kind):
    """XTuner and mmengine open checkpoints by themselves; the runtime config closes their doors first."""
    file = tmp_path / "iter_1.pth"
    FORMATS[kind](file, tmp_path / "trace", {"projector.weight": torch.ones(1)})
    options = {"--resume": ["--resume", str(file)], "load_from": ["--cfg-options", f"load_from={file}"]}
    if door == "test":
        import xtuner.tools.test as tool

        monkeypatch.setattr(
            sys, "argv", ["test.py", str(CONFIG), "--checkpoint", str(file), "--work-dir", str(tmp_path)]
        )
        with pytest.raises(ValueError, match=r"iter_1\.pth"):
            runpy.run_path(tool.__file__, run_name="__main__")
    elif door == "pretrained_pth":
        with pytest.raises(ValueError, match=r"iter_1\.pth"):
            toy.build_model(toy.write_all(tmp_path / "toys"), pretrained_pth=str(file))
    else:
        output = forked.train(CONFIG, "--work-dir", tmp_path / "work", *options[door])
        assert os.fspath(file) in output and "Error" in output
        assert not list((tmp_path / "work").glob("*.pth"))
    assert not (tmp_path / "trace").exists()
