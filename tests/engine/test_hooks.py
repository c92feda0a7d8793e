"""Hooks, in runs of the toy model and of the whole model at toy size."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mg_llava.batch import TokenCount
from mg_llava.engine.generation import SampleGenerationHook
from mg_llava.engine.hooks import DataReportHook, GateMonitorHook, ThroughputHook, count_batch_tokens
from tests import toy
from tests.engine.launch_toy import ToyData, ToyModel, toy_collate
from tests.run import read_log


def log_text(work_dir):
    return next(work_dir.glob("*/*.log")).read_text()


def monitor(**settings):
    return {"custom_hooks": [{"type": "mg_llava.GateMonitorHook", **settings}]}


def test_monitor_reports_gradient_norms(runs):
    """Norms are those of autograd, before clipping; the first step of the toy run is redone by hand."""
    runner = runs.build(**monitor(interval=1))
    model = ToyModel()
    model.load_state_dict(runner.model.state_dict())
    batches = []
    runner.register_hook(_Recorder(batches))
    runner.train()
    model(batches[0]["data"])["loss"].backward()
    first = read_log(runs.work_dir)[0]
    for part in ("fuse_module", "projector", "llm"):
        expected = torch.cat([p.grad.flatten() for p in getattr(model, part).parameters()]).norm()
        assert first[f"grad_{part}"] == pytest.approx(expected.item(), rel=1e-3)
    assert first["gate"] == 0 and first["low_norm"] > 0  # zero-initialized fusion
    assert "high_norm" not in first and "grad_bbox_projector" not in first


class _Recorder(GateMonitorHook):
    """Keeps the batches that were trained on."""

    def __init__(self, batches):
        super().__init__(interval=10**6)
        self.batches = batches

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.batches.append(data_batch)


def test_monitor_keeps_to_its_interval_and_removes_its_hooks(runs):
    runner, _ = runs.train(**monitor(interval=2))
    assert ["gate" in record for record in read_log(runs.work_dir)] == [False, True, True, True, True]
    assert not any(p._backward_hooks for p in runner.model.parameters())


def test_monitor_warns_of_a_dead_branch_once(runs):
    runs.train(**monitor(interval=1, patience=3), **{"model.dead": True})
    text = log_text(runs.work_dir)
    assert text.count("grad_fuse_module has stayed at 0.0e+00 for 3 iterations") == 1
    assert text.count("gate has stayed") == 1
    assert "grad_projector has stayed" not in text


def test_monitor_does_not_judge_parts_by_batches_without_pictures(runs):
    runs.train(
        **monitor(interval=1, patience=2), **{"model.dead": True}, **{"train_dataloader.collate_fn.kind": "text"}
    )
    assert "grad_fuse_module" not in read_log(runs.work_dir)[-1] and "grad_llm" in read_log(runs.work_dir)[-1]
    assert "grad_fuse_module has stayed" not in log_text(runs.work_dir)


def test_monitor_is_silent_about_a_branch_that_wakes_up(runs):
    runs.train(**monitor(interval=1, patience=2))
    assert "has stayed" not in log_text(runs.work_dir)


@pytest.mark.parametrize("settings", [{"interval": 0}, {"patience": 0}])
def test_monitor_refuses_settings(settings):
    with pytest.raises(ValueError, match="must be at least 1"):
        GateMonitorHook(**settings)


def test_count_tokens():
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    ids = torch.tensor([[5, -200, 5, 5, 5], [-200, 5, 5, -200, -200]])  # the last two are masked
    system = SimpleNamespace(token_count=TokenCount(4, per_box=1, per_media=2))
    assert count_batch_tokens({"attention_mask": mask, "input_ids": ids}, system) == 8
    data = {"attention_mask": mask, "input_ids": ids, "canvas": torch.zeros(3, 3, 8, 8)}
    data["boxes"] = [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(1, 4)]  # two canvases share a placeholder
    assert count_batch_tokens(data, system) == 8 - 2 + 2 * 2 + 3 * 4 + 4


def test_throughput(runs, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("mg_llava.engine.hooks.time.perf_counter", lambda: next(clock))
    hook = {"type": "mg_llava.ThroughputHook", "interval": 2}
    runs.train(custom_hooks=[hook], **{"train_cfg.max_iters": 4})
    log = read_log(runs.work_dir)
    assert [record.get("samples_per_s") for record in log] == [None, 2.0, 2.0, 4.0]  # 1, then 2 batches of 2 samples
    assert [record.get("tokens_per_s") for record in log] == [None, 6.0, 6.0, 12.0]
    assert ThroughputHook.priority == "NORMAL"


def test_data_report(runs):
    runs.train(custom_hooks=[{"type": "mg_llava.DataReportHook"}])
    assert "Data: 2 pictures could not be read" in log_text(runs.work_dir)


def test_data_report_counts_bad_samples(runs, monkeypatch):
    monkeypatch.delattr(ToyData, "report")
    monkeypatch.setattr(ToyData, "bad_samples", 3, raising=False)
    monkeypatch.setattr(ToyData, "data_path", "train.json", raising=False)
    runs.train(custom_hooks=[{"type": "mg_llava.DataReportHook"}])
    assert "Data: 3 samples of train.json were skipped" in log_text(runs.work_dir)
    assert DataReportHook.priority == "VERY_LOW"


def test_data_report_counts_stray_boxes(runs, monkeypatch):
    report = {"name": "toy", "records": 8, "skipped": {"bad_image": 1, "no_label": 0}, "stray_boxes": 3}
    report |= {"skipped_ids": ["b"], "stray_ids": ["a", "c"]}
    monkeypatch.setattr(ToyData, "report", lambda self: report)
    runs.train(custom_hooks=[{"type": "mg_llava.DataReportHook"}])
    log = log_text(runs.work_dir)
    assert "Data: 1 of 8 records of toy were skipped (1 bad_image), such as id 'b'" in log
    assert "Data: 3 boxes of toy lie outside of their pictures, such as id 'a', 'c'" in log


class _Runner:
    """What the generation hook needs of a runner."""

    iter = 0
    max_iters = 4
    optim_wrapper = None

    def __init__(self, model, work_dir):
        self.model, self.work_dir = model, str(work_dir)


def generation_hook(paths, samples, **settings):
    return SampleGenerationHook(
        tokenizer={
            "type": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": paths["llm"],
        },
        template="vicuna",
        picture_processor={"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS},
        samples=samples,
        max_new_tokens=4,
        **settings,
    )


def test_samples_are_generated(toy_paths, tmp_path):
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "picture.png")
    samples = [
        {"question": "What is it?", "image": str(tmp_path / "picture.png"), "boxes": [[1, 2, 20, 20]]},
        {"question": "Hello?"},
    ]
    model = toy.build_model(toy_paths).train()
    runner = _Runner(model, tmp_path)
    hook = generation_hook(toy_paths, samples, every_n_iters=2, do_sample=True, temperature=2.0)
    state = torch.get_rng_state()
    hook.before_train(runner)
    for runner.iter in range(4):
        hook.after_train_iter(runner, runner.iter)
    runner.iter = 4
    hook.after_train(runner)
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, 0, 2, 2, 4, 4]
    assert records[0]["boxes"] == [[1, 2, 20, 20]] and isinstance(records[0]["answer"], str)
    assert torch.equal(state, torch.get_rng_state())  # training does not notice
    assert model.training and not model.visual_encoder.training


def test_sample_without_question_is_refused(toy_paths):
    with pytest.raises(ValueError, match=r"samples\[0\] has the keys \['boxes', 'picture'\]"):
        generation_hook(toy_paths, [{"picture": "a.png", "boxes": []}])


def test_toy_collate_is_a_batch():
    assert toy_collate([ToyData()[0]])["data"]["input_ids"].shape == (1, 3)
