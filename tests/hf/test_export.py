"""A folder's files: complete, and without anything of the machine that wrote them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from mmengine.config import Config
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from mg_llava.conversion.settings import settings_of, stored_settings
from mg_llava.hf import MGLLaVAConfig, hf_key, own_key
from mg_llava.hf.export import folder_files
from mg_llava.hf.model_card import model_card, public_name
from tests import toy
from tests.hf.conftest import PROCESSOR, Exported, own_state, training_config

FILES = {
    "README.md",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_keys(exported: Exported) -> None:
    names = list(own_state(exported.model))
    keys = [hf_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert [own_key(key) for key in keys] == names
    for wrong in ("module.projector.model.0.weight", "projector", "llm.base_model.model.x", "llm.a.lora_A.weight", ""):
        with pytest.raises(ValueError, match=r"tensor of the model|adapter"):
            hf_key(wrong)
    for wrong in ("projector.model.0.weight", "model.embed_tokens.weight"):
        with pytest.raises(ValueError, match="tensor"):
            own_key(wrong)


def test_a_tokenizer_with_tokens_that_the_llm_lacks_is_refused(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """By the sentence of training and predictor: when a folder is written, and when it is loaded with another one."""
    from mg_llava.hf import MGLLaVAProcessor

    other = AutoTokenizer.from_pretrained(toy_paths["llm"])
    other.add_tokens([f"<{number}>" for number in range(len(other), 302)])
    other.save_pretrained(tmp_path / "tokenizer")
    config = training_config(toy_paths)
    config["tokenizer"] = {**config["tokenizer"], "pretrained_model_name_or_path": str(tmp_path / "tokenizer")}
    with pytest.raises(ValueError, match=r"2 tokens have none, such as '<300>' \(id 300\), '<301>' \(id 301\)"):
        folder_files(config, tmp_path / "refused")
    assert not list((tmp_path / "refused").iterdir())
    folder_files(training_config(toy_paths), tmp_path / "hf")
    MGLLaVAProcessor.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "processor")
    other.save_pretrained(tmp_path / "hf")
    for load in (MGLLaVAProcessor, AutoProcessor):
        with pytest.raises(ValueError, match=r"hf: the tokenizer has ids up to 301, the LLM 300 word embeddings"):
            load.from_pretrained(tmp_path / "hf")
    MGLLaVAProcessor.from_pretrained(tmp_path / "processor")  # nothing beside it says how many there are


def test_files(toy_paths: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    names = folder_files(training_config(toy_paths), tmp_path, dtype="bfloat16")
    assert set(names) == {file.name for file in tmp_path.iterdir()}
    assert set(names) ^ FILES <= {"chat_template.jinja", "special_tokens_map.json"}  # of one release of transformers
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["architectures"] == ["MGLLaVAForConditionalGeneration"]
    assert config["parts"]["high_res_encoder"]["architecture"]["kwargs"]["dims"] == list(toy.STAGE_CHANNELS)
    assert config["picture_config"]["image_size"] == toy.CANVAS
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == [2] and generation.pad_token_id == 3 and not generation.do_sample


@pytest.mark.parametrize("standalone", [False, True])
def test_nothing_of_this_machine(standalone: bool, exported: Exported, tmp_path: Path) -> None:
    from mg_llava.hf import MGLLaVAForConditionalGeneration

    folder_files(training_config(exported.paths), tmp_path / "made", standalone=standalone)
    MGLLaVAForConditionalGeneration.from_pretrained(exported.folder).save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(exported.folder).save_pretrained(tmp_path / "saved")
    folders = [str(Path(path).parent) for path in exported.paths.values()] + [str(exported.folder), str(Path.cwd())]
    for file in (
        (tmp_path / "made").iterdir()
        if standalone
        else [*(tmp_path / "made").iterdir(), *(tmp_path / "saved").iterdir()]
    ):
        if file.suffix != ".safetensors":
            text = file.read_text()
            assert not any(folder in text for folder in [*folders, "/tmp/", "/home/", "/root"]), file


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sizes_are_read_from_the_weights(suffix: str, toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = toy.write_convnext(tmp_path / "convnext", safetensors=suffix == ".safetensors", kwargs=False)
    folder_files(training_config({**toy_paths, "convnext": str(folder)}), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["parts"]["high_res_encoder"]["architecture"]["kwargs"]["depths"] == [1, 1, 2, 1]


def test_leaf_config(tmp_path: Path) -> None:
    config = Config.fromfile("configs/mg_llava_nano_instruct.py")
    folder_files(config, tmp_path / "leaf", dtype="float32")
    config.dump(tmp_path / "dumped.py")
    folder_files(Config.fromfile(tmp_path / "dumped.py"), tmp_path / "dumped", dtype="float32")
    first, second = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("leaf", "dumped"))
    assert first == second
    assert AutoProcessor.from_pretrained(tmp_path / "leaf").image_processor.image_size == 256
    assert "data/nano" not in "".join((tmp_path / "leaf" / name).read_text() for name in ("README.md", "config.json"))


def test_full_size_on_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model's sizes (Vicuna-7B), built without weights from a config alone."""
    from mg_llava.hf import MGLLaVAForConditionalGeneration

    config = MGLLaVAConfig(
        text_config={"model_type": "llama", "intermediate_size": 11008},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        high_resolution_config={
            "type": "OpenCLIPConvNeXtEncoder",
            "timm_name": "convnext_large",
            "image_size": 768,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        fusion_config={"type": "ConvGateFusion"},
        box_projector_config={"type": "RoIAlignBoxProjector"},
    )
    with torch.device("meta"):
        model = MGLLaVAForConditionalGeneration(config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    assert sizes["fuse_module"] == 6_085_121
    assert sizes["projector"] == 20_979_712
    assert sizes["bbox_projector"] == 28_581_888
    assert sizes["llm"] == 6_738_415_616
    assert len(model.model.visual_encoder.encoder.layers) == 23


def test_model_card(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder_files(training_config(toy_paths), tmp_path, standalone=True)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "trust_remote_code=True" in card and "convnext_large, 64 px" in card
    assert "base_model" not in card
    assert "$" not in card
    named = training_config(toy_paths)
    named["model"]["llm"]["path"] = "lmsys/vicuna-7b-v1.5"
    text = model_card(named, AutoConfig.from_pretrained(tmp_path), standalone=False)
    data = ModelCard(text).data.to_dict()  # as the hub reads it
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert data["base_model"] == "lmsys/vicuna-7b-v1.5"
    for path, name in [
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("/a/b", ""),
        ("./a", ""),
        (None, ""),
        ("data/nano", ""),
    ]:
        assert public_name(path) == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "lacks tokenizer"),
        ({"picture_processor": None, "prompt_template": None}, "lacks prompt_template, picture_processor"),
        ({"prompt_template": "no_such_chat"}, "no_such_chat"),
        ({"fusion": {"type": "mg_llava.NoFusion"}}, "NoFusion"),
        ({"low_res_encoder": {"type": "mg_llava.TimmEncoder", "name": "resnet18", "image_size": 64}}, "CLIPEncoder"),
        ({"projector": torch.nn.Identity()}, "give its config"),
    ],
)
def test_errors(change: dict[str, Any], message: str, toy_paths: dict[str, str], tmp_path: Path) -> None:
    config = training_config(toy_paths)
    for name, value in change.items():
        (config if name in config else config["model"])[name] = value
    with pytest.raises(ValueError, match=message):
        folder_files(config, tmp_path / "hf")
    assert list(tmp_path.glob("hf/*")) == []


def test_llm_with_code_of_its_own(toy_paths: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(toy_paths["llm"], tmp_path / "llm")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    config = training_config({**toy_paths, "llm": str(folder)})
    config["model"]["llm"]["trust_remote_code"] = True
    with pytest.raises(ValueError, match="code of its own"):
        folder_files(config, tmp_path / "hf")


def test_processor_arguments_travel(toy_paths: dict[str, str], tmp_path: Path) -> None:
    config = {**training_config(toy_paths), "picture_processor": PROCESSOR | {"mode": "exact", "max_boxes": None}}
    folder_files(config, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path).image_processor.picture_processor
    assert (processor.mode, processor.max_boxes) == ("exact", None)


def test_positions_that_were_trained_travel(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """From a config, and from the one that a checkpoint holds."""
    loader = {"batch_size": 2, "dataset": {"type": "Anything", "budget": {"context_length": 700}}}
    config = {**training_config(toy_paths), "train_dataloader": loader}
    stored = stored_settings("".join(f"{key} = {value!r}\n" for key, value in config.items()), "iter_1.pth")
    assert stored is not None
    for name, values in (("own", config), ("given", settings_of(config, "a.py").values), ("stored", stored.values)):
        folder_files(values, tmp_path / name)
        text = json.loads((tmp_path / name / "config.json").read_text())["text_config"]
        assert text["max_position_embeddings"] == 700, name
