"""Configs that come as data build known things alone, in every reader; whatever else they name is not called."""

import json
import shutil
import types

import pytest
import torch

from mg_llava.conversion import ConversionError, convert, inspect
from mg_llava.detection.pipeline import pipeline_config
from mg_llava.registry import DETECTORS, MODELS, TRANSFORMS
from mg_llava.safe_config import UntrustedConfigError, check_config
from tests import toy
from tests.hf.conftest import training_config, write_folder

CALLS = ["os.mkdir", "pathlib.Path.mkdir", "torch.hub.load", "builtins.eval", "transformers.pipeline", "MyFusion"]


def test_known_names_are_found_by_their_last_component():
    config = {
        "type": "mg_llava.models.mg_llava.MGLLaVA",
        "llm": {"type": "mg_llava.models.language_model.build_language_model", "path": "a", "trust_remote_code": True},
        "stages": [1, 2, {"type": "mg_llava.ConvGateFusion"}],
        "tokenizer": {"type": "transformers.models.auto.tokenization_auto.AutoTokenizer.from_pretrained"},
        "processor": {"type": "PictureProcessor", "size": (336, 336)},
    }
    before = json.dumps(config)
    assert check_config(config, "a.pth", MODELS, TRANSFORMS) == {
        "type": "mg_llava.MGLLaVA",
        "llm": {"type": "mg_llava.build_language_model", "path": "a"},
        "stages": [1, 2, {"type": "mg_llava.ConvGateFusion"}],
        "tokenizer": {"type": "transformers.AutoTokenizer"},
        "processor": {"type": "mg_llava.PictureProcessor", "size": (336, 336)},
    }
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    "kind",
    [
        *(*CALLS, 3, None, True, ["AutoTokenizer"], "OWLv2Detector", "evil.transformers.AutoTokenizer"),
        *("AutoTokenizer.from_pretrained", "transformers.AutoTokenizer.__init__", "mg_llava.MGLLaVA.__class__"),
        *("", ".", "mg_llava.", "os.system;mg_llava", "mg_llava.MGLLaVA\n", "__import__('os').system"),
    ],
)
def test_other_names_are_refused(kind):
    for config in ({"type": kind}, {"a": [{"b": {"type": kind}}]}, ({"type": kind},)):
        with pytest.raises(UntrustedConfigError, match=r"a\.pth names .*is not built from data"):
            check_config(config, "a.pth", MODELS, TRANSFORMS)


@pytest.mark.parametrize("value", [print, torch.nn.Linear, types.SimpleNamespace(), {1, 2}, b"x"])
def test_other_values_are_refused(value):
    with pytest.raises(UntrustedConfigError, match=f"holds a {type(value).__name__}; only plain values"):
        check_config({"a": [value]}, "a.pth", DETECTORS)


@pytest.mark.parametrize("depth", [1200, 5000])
@pytest.mark.parametrize("wrap", [lambda value: {"a": value}, lambda value: [value]])
def test_deep_configs_are_refused(depth, wrap):
    config = {"type": "pathlib.Path.mkdir"}
    for _ in range(depth):
        config = wrap(config)
    with pytest.raises(UntrustedConfigError, match=r"a\.pth is nested too deeply"):
        check_config(config, "a.pth", MODELS)


@pytest.mark.parametrize(
    "part", ["tokenizer", "picture_processor", "model.fusion", "model.low_res_encoder", "model.llm"]
)
def test_stored_in_a_checkpoint(toy_paths, tmp_path, part):
    config = training_config(toy_paths)
    owner, name = (config["model"], part.split(".")[1]) if "." in part else (config, part)
    owner[name] = {"type": "pathlib.Path.mkdir", "self": str(tmp_path / "trace")}
    text = "\n".join(f"{key} = {value!r}" for key, value in config.items())
    state = toy.build_model(toy_paths).state_dict()
    torch.save({"meta": {"cfg": text + "\nmg_llava = 1"}, "state_dict": state}, tmp_path / "a.pth")
    for use in (lambda: inspect(tmp_path / "a.pth"), lambda: convert(tmp_path / "a.pth", tmp_path / "out", "hf")):
        with pytest.raises(ConversionError, match=r"a\.pth names 'pathlib.Path.mkdir'.*give the training config"):
            use()
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


def test_code_of_a_folder_is_not_run_for_a_stored_config(toy_paths, tmp_path):
    llm = tmp_path / "llm"
    shutil.copytree(toy_paths["llm"], llm)
    written = json.loads((llm / "config.json").read_text())
    written |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}
    (llm / "config.json").write_text(json.dumps(written))
    (llm / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\nclass Own: ...\n")
    config = training_config(toy_paths)
    config["model"]["llm"] |= {"path": str(llm), "trust_remote_code": True}
    text = "\n".join(f"{key} = {value!r}" for key, value in config.items())
    state = toy.build_model(toy_paths, tuning="full").state_dict()
    torch.save({"meta": {"cfg": text + "\nmg_llava = 1"}, "state_dict": state}, tmp_path / "a.pth")
    for use in (lambda: inspect(tmp_path / "a.pth"), lambda: convert(tmp_path / "a.pth", tmp_path / "out", "hf")):
        with pytest.raises(ConversionError, match="holds no causal LM"):
            use()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", ["fusion", "projector", "low_res_encoder"])
@pytest.mark.parametrize("kind", CALLS)
def test_config_of_a_hugging_face_folder(toy_paths, tmp_path, part, kind):
    from mg_llava.hf import MGLLaVAForConditionalGeneration

    write_folder(tmp_path / "hf", toy_paths)
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    config["parts"][part] = {"type": kind, "path": str(tmp_path / "trace")}
    file.write_text(json.dumps(config))
    with pytest.raises(UntrustedConfigError, match="is not built from data"):
        MGLLaVAForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert not (tmp_path / "trace").exists()


def test_detectors_of_a_json_file(tmp_path):
    file = tmp_path / "x.json"
    for kind in CALLS:
        for config in (
            {"detector": {"type": kind, "path": str(tmp_path / "trace")}},
            {"detector": {"type": "OWLv2Detector", "path": "a"}, "tagger": {"type": kind}},
        ):
            file.write_text(json.dumps({"box_pipeline": config}))
            with pytest.raises(UntrustedConfigError, match=r"x\.json names"):
                pipeline_config(str(file))
    file.write_text(json.dumps({"detector": {"type": "mg_llava.OWLv2Detector", "path": "a"}}))
    assert pipeline_config(str(file), threshold=0.3)["detector"]["threshold"] == 0.3
