"""Every leaf config loads, dumps, loads again and says the same; settings reach all the places that need them."""

import json
import runpy
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.utils import get_object_from_string
from PIL import Image

from mg_llava.batch import TokenCount
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.mixture import MixtureDataset
from mg_llava.data.settings import build_group, build_tokens
from mg_llava.data.text.budget import TokenBudget
from mg_llava.registry import DATASETS
from tests import toy

ROOT = Path(__file__).parents[2]
LEAVES = sorted(
    file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.py") if "_base_" not in file.parts
)
OF_MG_LLAVA = [leaf for leaf in LEAVES if not leaf.startswith("configs/lyrics/")]
LONGEST_LEAF = 20

SWAPPED = """
from mmengine.config import read_base

with read_base():
    from ._base_.data.nano import nano_stage1
    from ._base_.data.paper import stage1, stage1_merged, stage2, stage2_merged
    from ._base_.run import pretrain
    from ._base_.systems.mg_llava import mg_llava
    from ._base_.vision import nano as nano_vision

globals().update(
    pretrain(
        mg_llava(dict(llm_name_or_path="another/llm", prompt_template="qwen_chat"), nano_vision, {model}),
        {data},
        batch_size=2,
        {settings}
    )
)
del mg_llava, pretrain, nano_vision, stage1, stage1_merged, stage2, stage2_merged
"""


@cache
def read(leaf: str) -> Config:
    """A leaf, read once."""
    return Config.fromfile(ROOT / leaf)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads the text of a leaf that lies beside the repository's ``_base_`` folder."""
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")

    def build(settings: str = "", data: str = "nano_stage1", model: str = "") -> Config:
        file = tmp_path / "leaf.py"
        file.write_text(SWAPPED.format(settings=settings, data=data, model=model))
        return Config.fromfile(file)

    return build


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_loads_and_survives_a_dump(leaf: str, tmp_path: Path) -> None:
    config = read(leaf)
    config.dump(tmp_path / "flat.py")
    flat = Config.fromfile(tmp_path / "flat.py")
    assert flat.to_dict() == config.to_dict()
    assert {"model", "tokenizer", "picture_processor", "prompt_template", "train_dataloader"} <= set(flat)
    assert not {"globals", "pretrain", "instruct", "paper_pretrain", "nano_pretrain", "mg_llava"} & set(flat)


def types_in(value: Any) -> Iterator[Any]:
    """What every ``type`` of a config names."""
    if isinstance(value, dict):
        if "type" in value:
            yield value["type"]
        yield from (found for item in value.values() for found in types_in(item))
    elif isinstance(value, list | tuple):
        yield from (found for item in value for found in types_in(item))


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_types_are_classes_and_functions(stage: str, tmp_path: Path) -> None:
    """A module of the same name would be found only when the training starts."""
    read(f"configs/mg_llava_vicuna7b_{stage}.py").dump(tmp_path / "flat.py")
    names = set(types_in(Config.fromfile(tmp_path / "flat.py").to_dict()))
    paths = {name for name in names if "." in name}  # the others are names in registries
    assert len(paths) > 20 and {name for name in paths if not callable(get_object_from_string(name))} == set()


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_is_short(leaf: str) -> None:
    assert len((ROOT / leaf).read_text().splitlines()) <= LONGEST_LEAF


def budget_of(config: Config) -> TokenBudget:
    """The limits of a config's data, with the tokens that its model says."""
    dataset = config.train_dataloader.dataset
    return build_group("budget", dataset.budget).counting(build_tokens(dataset.tokens))


TOKENS = {"mr_mllm": 0, "nano": 64, "siglip": 729}
"""Tokens of a picture where they are not 576."""

SIZES = {"mr_mllm_nano": 256, "mr_mllm": 800, "nano": 256, "siglip": 864}
"""Sides of pictures where they are not 768."""


@pytest.mark.parametrize("leaf", OF_MG_LLAVA)
def test_data_counts_the_tokens_of_the_model_and_makes_pictures_in_its_size(leaf: str) -> None:
    config = read(leaf)
    budget, dataset = budget_of(config), config.train_dataloader.dataset
    per_canvas = next((TOKENS[name] for name in TOKENS if name in leaf), 576)
    has_objects = config.model.get("box_projector") is not None and "boxes_into_picture" not in leaf
    per_crop = {"grounding_nano": 4, "grounding_qwen": 36}.get(Path(leaf).stem[:14], 0)
    assert budget.tokens == TokenCount(per_canvas, per_box=int(has_objects), per_crop=per_crop)
    assert budget.max_length == dataset.budget.context_length - per_canvas
    assert {**dataset.tokens.model, "llm": config.model.llm} == {
        key: value if key == "llm" else without_dtype(value)
        for key, value in config.model.items()
        if key != "pretrained_pth"
    }
    size = next((SIZES[name] for name in SIZES if name in leaf), 768)
    assert config.picture_processor.image_size == dataset.picture_processor.image_size == size


def without_dtype(part: Any) -> Any:
    return {key: value for key, value in part.items() if key != "dtype"} if isinstance(part, dict) else part


PAPER = {"phi3": 8, "vicuna7b": 8, "llama3_8b": 8, "vicuna13b": 16, "yi34b": 32}
"""GPUs that each leaf of the paper says it is for."""


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(("stage", "total", "lr"), [("pretrain", 256, 1e-3), ("instruct", 128, 2e-5)])
def test_the_papers_models_have_the_papers_schedule(name: str, stage: str, total: int, lr: float) -> None:
    file = ROOT / "configs" / f"mg_llava_{name}_{stage}.py"
    config = Config.fromfile(file)
    accumulated = config.optim_wrapper.accumulative_counts
    assert config.train_dataloader.batch_size * accumulated * PAPER[name] == total
    assert f"batch {total} on {PAPER[name]} GPUs (the paper's schedule)" in file.read_text()
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.optim_wrapper.optimizer.betas == (0.9, 0.999)
    assert config.optim_wrapper.optimizer.weight_decay == 0
    assert config.optim_wrapper.clip_grad.max_norm == 1
    assert config.train_cfg.max_epochs == 1
    assert budget_of(config).max_length == 2048 - 576
    assert config.model.llm.tuning == {"pretrain": "frozen", "instruct": "full"}[stage]


@pytest.mark.parametrize(
    ("name", "samples", "gpus", "tuning"),
    [
        ("pretrain_video", 256, 8, "frozen"),
        ("instruct_video", 128, 16, "full"),
        ("instruct_video_qlora", 128, 16, "qlora"),
    ],
)
def test_the_video_model_is_trained_as_the_reference(name: str, samples: int, gpus: int, tuning: str) -> None:
    config = Config.fromfile(ROOT / "configs" / "video" / f"mg_llava_vicuna7b_{name}.py")
    assert config.train_dataloader.batch_size * config.optim_wrapper.accumulative_counts * gpus == samples
    for part in (config, config.train_dataloader.dataset):
        assert part.picture_processor.video == dict(frames=8, pad_to_square=False)
    assert config.train_dataloader.dataset.budget.context_length >= 8 * (576 + 20) + 1472, (
        "boxes and text beside frames"
    )
    assert config.optim_wrapper.optimizer.lr == (1e-3 if tuning == "frozen" else 2e-5)
    assert config.model.llm.tuning == tuning and config.train_cfg.max_epochs == 1
    if tuning == "qlora":
        assert config.model.llm.lora == dict(r=512, lora_alpha=256, lora_dropout=0.05)
    if tuning != "frozen":
        assert Path(config.model.pretrained_pth).name == "mg_llava_vicuna7b_pretrain_video"


@pytest.mark.parametrize("leaf", LEAVES)
def test_names_of_leaves_are_true(leaf: str) -> None:
    config = read(leaf)
    assert f"xtuner train {leaf}" in (text := (ROOT / leaf).read_text()) or f"\n#       {leaf} " in text
    stage1 = config.model.pretrained_pth is None
    assert stage1 == ("_pretrain" in leaf)
    if not stage1:
        start = ROOT / "configs" / f"{Path(config.model.pretrained_pth).name}.py"
        assert any((folder / start.name).is_file() for folder in (start.parent, (ROOT / leaf).parent))


def test_every_llm_has_leaves_of_both_stages() -> None:
    rows = runpy.run_path(str(ROOT / "configs" / "_base_" / "llms.py"))
    paths = {row["llm_name_or_path"] for row in rows.values() if isinstance(row, dict) and "llm_name_or_path" in row}
    for stage in ("pretrain", "instruct"):
        configs = [
            read(leaf) for leaf in OF_MG_LLAVA if Path(leaf).name.startswith("mg_llava") and f"_{stage}" in leaf
        ]
        assert {config.model.llm.path for config in configs} >= paths


def test_code_of_an_llms_folder_is_trusted_only_where_its_row_says_so() -> None:
    for leaf in OF_MG_LLAVA:
        config = read(leaf)
        trusted = "internlm" in leaf
        assert config.tokenizer.get("trust_remote_code", False) == trusted
        assert config.model.llm.get("trust_remote_code", False) == trusted
        assert config.train_dataloader.dataset.tokenizer == config.tokenizer


def test_nano_differs_in_what_it_names_only() -> None:
    def shape(node: object) -> object:
        """Names of all modules and settings, without their values."""
        if isinstance(node, dict):
            return {key: node[key] if key == "type" else shape(node[key]) for key in node}
        return [shape(item) for item in node] if isinstance(node, list) else None

    for stage in ("pretrain", "instruct"):
        real, nano = (
            Config.fromfile(ROOT / "configs" / f"mg_llava_{name}_{stage}.py") for name in ("vicuna7b", "nano")
        )
        assert shape(real.model.to_dict()) == shape(nano.model.to_dict())
        assert shape(real.tokenizer.to_dict()) == shape(nano.tokenizer.to_dict())
        assert shape(real.param_scheduler) == shape(nano.param_scheduler)


def test_another_llm_reaches_model_data_and_tokenizer(load) -> None:
    config = load()
    assert config.model.llm.path == "another/llm"
    assert config.tokenizer.pretrained_model_name_or_path == "another/llm"
    assert config.train_dataloader.dataset.tokenizer.pretrained_model_name_or_path == "another/llm"
    assert config.train_dataloader.dataset.template == "qwen_chat"


def test_branches_can_be_left_out_or_replaced(load) -> None:
    assert load(model="fusion=None, box_projector=None").model.high_res_encoder is None
    replaced = load(model="fusion=dict(type='mg_llava.MyFusion', width=3), box_projector=None").model
    assert replaced.fusion == dict(type="mg_llava.MyFusion", width=3) and replaced.box_projector is None
    assert replaced.high_res_encoder is not None  # the new fusion reads it


def test_settings_of_speed_reach_model_and_optimizer(load) -> None:
    plain, changed = (
        load(),
        load(
            "gradient_checkpointing='selective', fused_optimizer=False",
            model="packing=4096, compile_vision=True",
        ),
    )
    assert plain.optim_wrapper.optimizer.fused is True and plain.model.llm.gradient_checkpointing is True
    assert "fused" not in changed.optim_wrapper.optimizer and changed.model.llm.gradient_checkpointing == "selective"
    assert (changed.model.packing, changed.model.compile_vision) == (4096, True)


def test_another_detector_is_a_line_of_a_leaf_of_mr_mllm(tmp_path: Path) -> None:
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")
    leaf = (ROOT / "configs" / "mr_mllm" / "mr_mllm_qwen2_5_3b_pretrain.py").read_text().replace(".._base_", "._base_")
    for name, path in (
        ("deformable_detr", "SenseTime/deformable-detr"),
        ("grounding_dino", "IDEA-Research/grounding-dino-tiny"),
    ):
        (tmp_path / f"{name}.py").write_text(leaf.replace("detr_r50", name))
        config = Config.fromfile(tmp_path / f"{name}.py")
        detector = config.train_dataloader.dataset.tokens.model.detector
        assert detector.path == config.model.detector.path == path
        assert len(detector.get("classes") or ()) == (80 if name == "grounding_dino" else 0)
    assert config.prompt_parts == config.train_dataloader.dataset.boxes.prompt


def test_prompts_inside_the_llm_are_one_word(load) -> None:
    model = load("tuning='gated_prompts', prompts=dict(prompts=4)").model
    assert model.llm.tuning == "frozen" and model.prompts.prompts == 4
    assert "prompts" not in load().model
    with pytest.raises(TypeError, match="prompts are settings of tuning='gated_prompts', but tuning='frozen'"):
        load("prompts=dict(prompts=4)")


def test_a_misspelled_setting_is_named(load) -> None:
    with pytest.raises(TypeError, match="bach_size"):
        load("bach_size=2")


@pytest.mark.parametrize(
    ("setting", "now"),
    [
        ("llm_name_or_path='a/b'", r"\{\*\*nano, 'llm_name_or_path'"),
        ("fusion=None", r"fusion is now an argument of the system: model=dict\(fusion"),
        ("model_options=dict(packing=4096)", r"model_options is now model=dict"),
        ("vision={}", "vision is now an argument of"),
    ],
)
def test_a_setting_with_a_new_place_is_named_with_it(load, setting: str, now: str) -> None:
    with pytest.raises(TypeError, match=now):
        load(setting)


def test_an_llm_without_a_name_is_no_row(load, tmp_path: Path) -> None:
    leaf = tmp_path / "no_row.py"
    leaf.write_text(
        "from mmengine.config import read_base\n\nwith read_base():\n    from ._base_.nano import nano_pretrain\n\n"
        "globals().update(nano_pretrain(llm=dict(r=8)))\ndel nano_pretrain\n"
    )
    with pytest.raises(TypeError, match=r"llm is a row of llms.py.*has only r"):
        Config.fromfile(leaf)


def test_samples_during_training_use_the_same_parts(load) -> None:
    config = load("evaluation_samples=[dict(question='Who are you?')], evaluation_freq=7")
    hook = config.custom_hooks[-1]
    assert hook.every_n_iters == 7
    assert hook.tokenizer == config.tokenizer and hook.picture_processor == config.picture_processor


def test_benchmarks_of_a_leaf_read_with_the_parts_of_training(load) -> None:
    config = load("evaluation=dict(benchmarks=['pope'], limit=4)")
    dataset = config.test_dataloader.dataset
    assert dataset.benchmarks == ["pope"] and dataset.limit == 4
    assert dataset.tokenizer == config.tokenizer and dataset.template == config.prompt_template
    assert dataset.picture_processor == config.picture_processor
    assert "test_dataloader" not in load() and "evaluate_on" not in load()


def write_paper_data(root: Path, dataset: Config) -> None:
    """One record with a picture and one without for each source, where the config says they are."""
    boxes: dict[str, dict] = {}
    for source in dataset.get("sources", [dataset]):
        name = Path(source.data_path).stem
        talk = [{"from": "human", "value": "<image>\nwhat is there?"}, {"from": "gpt", "value": "two digits"}]
        alone = [{"from": "human", "value": "what is there?"}, {"from": "gpt", "value": "a digit"}]
        records = [{"id": "t", "conversations": alone}, {"id": name, "image": "a.png", "conversations": talk}]
        for folder in (root / source.image_folder, (root / source.data_path).parent):
            folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(root / source.image_folder / "a.png")
        (root / source.data_path).write_text(json.dumps(records))
        boxes[name] = {"boxes": [[1, 1, 9, 9]], "scores": [0.5], "labels": ["digit"]}
        (root / source.box_path).parent.mkdir(parents=True, exist_ok=True)
        (root / source.box_path).write_text(json.dumps(boxes))


@pytest.mark.parametrize(
    ("data", "kind", "count"),
    [
        ("stage1", MixtureDataset, 3),
        ("stage2", MixtureDataset, 4),
        ("stage1_merged", LLaVADataset, 1),
        ("stage2_merged", LLaVADataset, 1),
    ],
)
def test_the_papers_data_is_found_under_another_root(data: str, kind: type, count: int, load, tmp_path: Path) -> None:
    config = load(data=data)
    assert config.train_dataloader.dataset.data_root == "./data/mg_llava/"
    config.merge_from_dict({"train_dataloader.dataset.data_root": str(tmp_path / "elsewhere")})
    dataset = config.train_dataloader.dataset
    write_paper_data(tmp_path / "elsewhere", dataset)
    dataset.tokenizer = str(toy.write_tokenizer(tmp_path / "llm"))
    built = DATASETS.build(dataset)
    assert type(built) is kind and len(built) == 2 * count
    assert [len(built[i]["boxes"]) for i in range(2)] == [0, 1]
    sources = built.sources if kind is MixtureDataset else [built]
    assert len({id(source.box_store) for source in sources}) == 1
    assert all(source.budget.context_length == 2048 for source in sources)
    assert all(source.budget.tokens == TokenCount(64) for source in sources)


def test_nano_reads_the_data_that_the_miniature_makes() -> None:
    for stage, name in (("stage1", "pretrain"), ("stage2", "instruct")):
        dataset = Config.fromfile(ROOT / "configs" / f"mg_llava_nano_{name}.py").train_dataloader.dataset
        assert dataset.data_path == f"data/nano/generated/{stage}.json"
        assert dataset.box_path == f"data/nano/generated/{stage}_boxes.json"
        assert dataset.image_folder == "data/nano/generated/images"
        assert dataset.budget == dict(context_length=256, spare_picture=True, long_text_margin=None)


SECOND_SYSTEM = """
from mmengine.config import read_base

from mg_llava.data import PictureProcessor
from mg_llava.models import MGLLaVA

with read_base():
    from ..parts import language, part


def second(llm, encoder, connector):
    model, text = language(**llm)
    processor = dict(type=PictureProcessor, image_size=56)
    model = dict(type=MGLLaVA, llm=model, low_res_encoder=part(encoder), projector=part(connector))
    return dict(**text, picture_processor=processor, model=model)
"""

LEAF_OF_SECOND = """
from mmengine.config import read_base

with read_base():
    from ._base_.data.nano import nano_stage1
    from ._base_.llms import nano
    from ._base_.run import pretrain
    from ._base_.runtime import *
    from ._base_.systems.second import second

from mg_llava.models import CLIPEncoder, MLPProjector

globals().update(
    pretrain(second(nano, dict(type=CLIPEncoder, path="data/nano/clip"), MLPProjector), nano_stage1, batch_size=2)
)
del nano, nano_stage1, pretrain, second
"""


def test_another_system_is_one_builder_and_its_leaves(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs" / "_base_", tmp_path / "_base_")
    (tmp_path / "_base_" / "systems" / "second.py").write_text(SECOND_SYSTEM)
    (tmp_path / "leaf.py").write_text(LEAF_OF_SECOND)
    config = Config.fromfile(tmp_path / "leaf.py")
    config.dump(tmp_path / "flat.py")
    flat = Config.fromfile(tmp_path / "flat.py")
    assert flat.to_dict() == config.to_dict() and "second" not in flat
    assert flat.model.low_res_encoder.dtype == flat.model.llm.dtype == "auto"
    assert budget_of(flat).tokens == TokenCount(64, per_box=0)


def test_a_leaf_in_another_folder_has_a_link_to_base(tmp_path: Path) -> None:
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")
    text = (ROOT / "configs" / "mg_llava_vicuna7b_instruct.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace("gpus=8", "gpus=4"))
    config = Config.fromfile(tmp_path / "mine.py")
    assert config.train_dataloader.batch_size == 32 and config.model.llm.tuning == "full"
