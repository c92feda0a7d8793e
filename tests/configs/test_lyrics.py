"""Leaves of Lyrics: sizes, schedule and what each stage reads."""

import pytest

from mg_llava.batch import TokenCount
from tests.configs.test_configs import LEAVES, budget_of, read, without_dtype

LYRICS = [leaf for leaf in LEAVES if leaf.startswith("configs/lyrics/")]


@pytest.mark.parametrize("leaf", LYRICS)
def test_data_and_model_agree(leaf: str) -> None:
    config = read(leaf)
    is_first, is_nano = "_pretrain" in leaf, "nano" in leaf
    dataset, model = config.train_dataloader.dataset, config.model
    assert config.model.type.__name__ == ("LyricsPretrain" if is_first else "Lyrics")
    extra = dataset.boxes.extra
    assert extra.vocabulary == model.pieces.vocabulary and extra.reads == ("caption" if is_first else "question")
    assert config.picture_processor.image_size == (256 if is_nano else 800)
    assert {**dataset.tokens.model, "llm": None} == {
        key: without_dtype(value) for key, value in {**model, "llm": None}.items() if key != "pretrained_pth"
    }
    assert "extra" not in config
    assert {part.dtype for part in (model.visual_encoder, model.get("detector")) if part is not None} == {
        "float32" if is_nano else "auto"
    }
    if is_nano:  # the files of the others are not here
        assert budget_of(config).tokens == TokenCount(0 if is_first else 16, per_box=0)


def test_the_schedule_is_that_of_blip_2() -> None:
    first, second = read("configs/lyrics/lyrics_pretrain.py"), read("configs/lyrics/lyrics_vicuna13b_instruct.py")
    assert first.optim_wrapper.optimizer.lr == 1e-4 and first.optim_wrapper.optimizer.weight_decay == 0.05
    assert first.param_scheduler[1].eta_min == 5e-5
    assert first.train_dataloader.batch_size * 8 == 256 and second.train_dataloader.batch_size * 8 == 128
    assert [loss.type.__name__ for loss in first.model.losses] == ["AlignmentLoss", "CaptionLoss", "SpatialLoss"]
    assert first.model.mq_former.bert == "google-bert/bert-base-uncased" and "bert" not in second.model.mq_former
    assert first.model.mq_former.queries == second.model.mq_former.queries == (32, 64)
    assert second.optim_wrapper.optimizer.lr == 1e-4  # of the adapters
    assert second.optim_wrapper.paramwise_cfg.custom_keys == {"mq_former": {"lr_mult": 0.1}}
    lora = second.model.llm.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 32, 0.05)
    assert lora.target_modules == ["q_proj", "k_proj", "v_proj"] and second.model.fresh == ("projector",)
    for leaf in LYRICS:
        if "_instruct" in leaf:
            suffix = leaf.removesuffix(".py").partition("_instruct")[2]
            name = f"lyrics_nano_pretrain{suffix}" if "nano" in leaf else "lyrics_pretrain"
            assert read(leaf).model.pretrained_pth == f"./work_dirs/{name}"


def test_rows_of_the_miniature_add_one_thing_each() -> None:
    rows = {row: read(f"configs/lyrics/lyrics_nano_pretrain{row}.py") for row in ("_blip2", "_objects", "_items", "")}
    found = {
        row: (
            config.model.get("detector") is not None,
            config.train_dataloader.dataset.boxes.extra.get("items", True),
            "SpatialLoss" in [loss.type.__name__ for loss in config.model.losses],
            sum(config.model.mq_former.queries),
        )
        for row, config in rows.items()
    }
    assert found == {
        "_blip2": (False, False, False, 16),
        "_objects": (True, False, False, 16),
        "_items": (True, True, False, 16),
        "": (True, True, True, 16),
    }
