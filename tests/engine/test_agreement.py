"""Settings that follow from others follow them, or a warning says what to do."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch import nn
from transformers import AutoTokenizer

from mg_llava.engine import agreement
from mg_llava.engine.agreement import _clipping, check_vocabulary, fit_precision, fit_sampler, fit_schedule
from mg_llava.engine.schedulers import WarmupLR
from tests import toy


def recipe(epochs):
    """The two schedules of a recipe."""
    return [
        {"type": WarmupLR, "by_epoch": True, "begin": 0, "end": 0.03 * epochs, "convert_to_iter_based": True},
        {"type": CosineAnnealingLR, "eta_min": 0.0, "by_epoch": True, "begin": 0.03 * epochs, "end": epochs},
    ]


@pytest.mark.parametrize(("made_for", "run"), [(1, 2), (1, 10), (3, 1), (2, 3)])
def test_schedule_in_epochs_follows(made_for, run):
    stretched = fit_schedule(recipe(made_for), run * 8, run, 8)
    for found, wanted in zip(stretched, recipe(run), strict=True):
        assert found["end"] == pytest.approx(wanted["end"]) and found["begin"] == pytest.approx(wanted["begin"])


def test_agreeing_schedule_is_left_alone():
    schedules = recipe(2)
    assert fit_schedule(schedules, 16, 2, 8) is schedules


@pytest.mark.parametrize(
    ("schedule", "run", "end"),
    [
        ({"type": "CosineAnnealingLR", "by_epoch": False, "begin": 0, "end": 5}, 7, 7),
        ({"type": "mmengine.optim.PolyLR", "by_epoch": False, "begin": 0, "end": 5, "eta_min": 0}, 20, 20),
        ({"type": CosineAnnealingLR, "by_epoch": False, "begin": 0, "end": 5, "eta_min": 1e-5}, 7, 5),  # meant
        ({"type": LinearLR, "by_epoch": False, "begin": 0, "end": 5}, 7, 5),  # a warm-up, then constant
        ({"type": CosineAnnealingLR, "by_epoch": False, "begin": 0, "end": 500}, 20, 500),  # a short look
    ],
)
def test_schedule_in_steps(schedule, run, end):
    before = dict(schedule)
    assert fit_schedule([schedule], run, None, 4)[0]["end"] == end
    assert schedule == before  # configs handed in are not changed


def test_run_trains_to_its_end(runs):
    """With the schedule of a shorter run the last steps would change nothing."""
    runner, _ = runs.train(**{"train_cfg.max_iters": 9})
    assert runner.param_schedulers[0].end == 9
    log = next(runs.work_dir.glob("*/*.log")).read_text()
    assert "param_scheduler is for 5 steps and train_cfg for 9" in log


@pytest.mark.parametrize(("batch", "counts"), [(4, 1), (2, 3), (16, 4)])
def test_sampler_follows_the_batch_size(batch, counts):
    loader = {"batch_size": batch, "sampler": {"type": "LengthGroupedSampler", "per_device_batch_size": 5}}
    assert fit_sampler(loader, counts)["sampler"]["per_device_batch_size"] == batch * counts
    assert loader["sampler"]["per_device_batch_size"] == 5


def test_samplers_without_a_batch_size_are_left_alone():
    loader = {"batch_size": 4, "sampler": {"type": "DefaultSampler"}}
    assert fit_sampler(loader, 2) is loader


AUTO = {"bf16": {"enabled": True}, "fp16": {"enabled": False, "initial_scale_power": 16}}
AMP = {"type": "mmengine.optim.AmpOptimWrapper"}


@pytest.mark.parametrize(
    ("stated", "settings", "wanted"),
    [
        ({"type": "OptimWrapper"}, AUTO, []),
        ({"type": "OptimWrapper"}, {"fp16": {"enabled": True}}, []),
        (AMP | {"dtype": "bfloat16"}, AUTO, ["bf16"]),
        (AMP | {"dtype": "bfloat16"}, {}, ["bf16"]),
        (AMP | {"dtype": "float16"}, AUTO, ["fp16"]),
        (AMP, AUTO, ["fp16"]),  # mmengine's default on a GPU
    ],
)
def test_deepspeed_trains_in_the_precision_of_the_config(stated, settings, wanted):
    settings = {key: dict(value) for key, value in settings.items()}
    fit_precision(settings, stated)
    assert [key for key in settings if settings[key]["enabled"]] == wanted
    if "fp16" in wanted:
        assert settings["fp16"]["initial_scale_power"] == 16


@pytest.mark.parametrize(
    ("clip", "number"), [(None, 0.0), ({}, 0.0), ({"max_norm": 0.5}, 0.5), ({"max_norm": 3}, 3.0)]
)
def test_deepspeed_clips_as_the_config_says(clip, number):
    assert _clipping(clip) == number


@pytest.mark.parametrize(
    "clip", [{"type": "value", "clip_value": 1}, {"max_norm": 1, "norm_type": 1}, {"norm_type": 2}]
)
def test_clipping_that_deepspeed_cannot_do_is_refused(clip):
    with pytest.raises(ValueError, match="DeepSpeed clips by the 2-norm alone"):
        _clipping(clip)


@pytest.mark.parametrize(
    ("dtype", "rate", "warned"),
    [
        (torch.bfloat16, 2e-5, True),
        (torch.bfloat16, 1e-6, True),
        (torch.float16, 1e-6, True),
        (torch.bfloat16, 1e-2, False),
        (torch.float32, 2e-5, False),
    ],
)
def test_updates_that_are_rounded_away(monkeypatch, dtype, rate, warned):
    """The warning agrees with what an optimizer does to the weights."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False, dtype=dtype)
    nn.init.normal_(model.weight, std=0.02)
    before = model.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    said = []
    monkeypatch.setattr(agreement, "warn", said.append)
    agreement.warn_about_rounding(model, SimpleNamespace(optimizer=optimizer))
    model.weight.grad = torch.randn(64, 64).to(dtype)
    optimizer.step()
    moved = (model.weight != before).float().mean().item()
    assert (moved < 0.5) == warned
    assert len([text for text in said if "are too large to move" in text]) == warned


@pytest.mark.parametrize(("interval", "used"), [(2, 2), (3, 4), (5, 6), (4, 4)])
def test_checkpoints_are_written_after_updates(runs, interval, used):
    options = {"optim_wrapper.accumulative_counts": 2, "default_hooks.checkpoint.interval": interval}
    runs.train(**options)
    log = next(runs.work_dir.glob("*/*.log")).read_text()
    assert (f"fall between updates of 2 steps; they are written every {used}" in log) == (used != interval)
    written = {int(path.stem[5:]) for path in runs.work_dir.glob("iter_*.pth")}
    assert written == {*range(used, 6, used), 5}


# -- tokens and word embeddings -------------------------------------------------------------------------------------


def a_tokenizer(folder, *added, pad=None):
    """A tokenizer of 300 tokens, and what is added."""
    tokenizer = AutoTokenizer.from_pretrained(toy.write_tokenizer(folder))
    tokenizer.add_tokens([f"filler_{number}" for number in range(300 - len(tokenizer))])
    tokenizer.add_tokens([token for token in added if token != pad])
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    return tokenizer


def a_model(rows):
    return SimpleNamespace(llm=SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(rows, 2)))


@pytest.mark.parametrize("holder", ["alone", "sources", "datasets"])
def test_added_tokens_stop_the_start(tmp_path, holder):
    data = SimpleNamespace(name="digits", tokenizer=a_tokenizer(tmp_path, "<obj>", "</obj>"))
    dataset = data if holder == "alone" else SimpleNamespace(**{holder: [SimpleNamespace(), data]})
    message = r"digits: the tokenizer has ids up to 301, the LLM 300 .* '<obj>' \(id 300\).*embeddings\(302\)"
    with pytest.raises(ValueError, match=message):
        check_vocabulary(a_model(300), dataset)
    check_vocabulary(a_model(302), dataset)


def test_rows_to_spare_and_a_padding_token_are_no_fault(tmp_path):
    tokenizer = a_tokenizer(tmp_path, pad="[PAD]")
    assert tokenizer.pad_token_id == 300
    for rows in (300, 301, 384):
        check_vocabulary(a_model(rows), SimpleNamespace(tokenizer=tokenizer))
    check_vocabulary(SimpleNamespace(llm=None), SimpleNamespace(tokenizer=tokenizer))


def test_deepspeed_gets_contiguous_weights_and_frozen_ones_get_their_layout_back():
    model = nn.ModuleList(nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last) for _ in range(2))
    model[0].requires_grad_(False)
    before = [conv.weight.detach().clone() for conv in model]
    seen = []

    class DeepSpeedStrategy:
        def _wrap_model(self, model):
            seen.extend(parameter.is_contiguous() for parameter in model.parameters())
            return model

    runner = SimpleNamespace(strategy=DeepSpeedStrategy())
    agreement.send_contiguous_weights(runner)
    runner.strategy._wrap_model(model)
    assert seen == [True] * 4
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and model[1].weight.is_contiguous()
    assert all(torch.equal(conv.weight, weight) for conv, weight in zip(model, before, strict=True))
