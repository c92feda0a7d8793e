"""Every leaf config loads, dumps, loads again and says the same; settings reach all the places that need them."""

from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
LEAVES = sorted(
    file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.py") if "_base_" not in file.parts
)
LONGEST_LEAF = 40

SWAPPED = """
from mmengine.config import read_base

with read_base():
    from ._base_.data import nano_stage1
    from ._base_.recipe import pretrain
    from ._base_.vision import nano as nano_vision

globals().update(
    pretrain(
        llm_name_or_path="another/llm",
        prompt_template="qwen_chat",
        vision=nano_vision,
        data=nano_stage1,
        batch_size=2,
        {settings}
    )
)
del pretrain
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads the text of a leaf that lies beside the repository's ``_base_`` folder."""
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")

    def build(settings: str = "") -> Config:
        file = tmp_path / "leaf.py"
        file.write_text(SWAPPED.format(settings=settings))
        return Config.fromfile(file)

    return build


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_loads_and_survives_a_dump(leaf: str, tmp_path: Path) -> None:
    config = Config.fromfile(ROOT / leaf)
    config.dump(tmp_path / "flat.py")
    flat = Config.fromfile(tmp_path / "flat.py")
    assert flat.to_dict() == Config.fromfile(ROOT / leaf).to_dict()
    assert {"model", "tokenizer", "picture_processor", "prompt_template", "train_dataloader"} <= set(flat)
    assert "globals" not in flat and "pretrain" not in flat and "instruct" not in flat


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_is_short(leaf: str) -> None:
    assert len((ROOT / leaf).read_text().splitlines()) <= LONGEST_LEAF


@pytest.mark.parametrize(
    ("name", "total", "lr"), [("pretrain", 256, 1e-3), ("instruct", 128, 2e-5)], ids=["stage 1", "stage 2"]
)
def test_vicuna_has_the_schedule_of_the_paper(name: str, total: int, lr: float) -> None:
    config = Config.fromfile(ROOT / "configs" / f"mg_llava_vicuna7b_{name}.py")
    assert config.train_dataloader.batch_size * config.optim_wrapper.accumulative_counts * 8 == total
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.optim_wrapper.optimizer.betas == (0.9, 0.999)
    assert config.optim_wrapper.optimizer.weight_decay == 0
    assert config.optim_wrapper.clip_grad.max_norm == 1
    assert config.train_cfg.max_epochs == 1
    assert config.train_dataloader.dataset.max_length == 2048 - 576
    assert config.model.llm.tuning == {"pretrain": "frozen", "instruct": "full"}[name]


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
    assert load("fusion=None, box_projector=None").model.high_res_encoder is None
    assert load("fusion=dict(type='mg_llava.MyFusion')").model.fusion.type == "mg_llava.MyFusion"


def test_a_misspelled_setting_is_named(load) -> None:
    with pytest.raises(TypeError, match="bach_size"):
        load("bach_size=2")


def test_samples_during_training_use_the_same_parts(load) -> None:
    config = load("evaluation_samples=[dict(question='Who are you?')], evaluation_freq=7")
    hook = config.custom_hooks[-1]
    assert hook.every_n_iters == 7
    assert hook.tokenizer == config.tokenizer and hook.picture_processor == config.picture_processor
