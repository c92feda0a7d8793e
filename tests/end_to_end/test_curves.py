"""Curves in other programs, by one word of a leaf."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mg_llava.engine import curves
from mg_llava.engine.curves import CurvesVisualizer
from tests.end_to_end.conftest import Project
from tests.run import forget_runs

WANDB = """
calls = []
def init(**given): calls.append(("init", given))
def log(values, **given): calls.append(("log", values))
def join(): pass
class config:
    update = staticmethod(lambda values, **given: calls.append(("config", values)))
class run:
    log_code = staticmethod(lambda **given: None)
"""
SWANLAB = """
from mmengine.visualization.vis_backend import BaseVisBackend
calls = []
class SwanlabVisBackend(BaseVisBackend):
    def __init__(self, save_dir, init_kwargs):
        super().__init__(save_dir)
        calls.append(("init", init_kwargs))
    def _init_env(self): pass
    experiment = property(lambda self: None)
    def add_config(self, config, **given): pass
    def add_image(self, *given, **named): pass
    def add_scalar(self, *given, **named): pass
    def add_scalars(self, values, *given, **named): calls.append(("log", values))
"""


def test_tensorboard_has_all_that_is_logged(project: Project) -> None:
    config = project.config("curves", "pretrain", batch_size=8, seed=0, curves="tensorboard")
    work_dir, output = project.train(config, how="here")
    assert (work_dir / "iter_2.pth").exists(), output[-4000:]
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = EventAccumulator(str(log.parent))
    events.Reload()
    names = events.Tags()["scalars"]
    wanted = {"loss", "lr", "grad_norm", "gate", "low_norm", "high_norm", "box_norm", "text_norm"}
    assert wanted | {"grad_fuse_module", "grad_projector", "grad_bbox_projector"} <= set(names)
    for name in wanted:
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines])
        assert [event.step for event in events.Scalars(name)] == [1, 2]
    assert "ConvGateFusion" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    ("program", "file", "source", "run"),
    [
        ("wandb", "wandb/__init__.py", WANDB, "name"),
        ("swanlab", "swanlab/integration/mmengine.py", SWANLAB, "experiment_name"),
    ],
)
def test_other_programs_get_the_values_and_the_runs_name(
    program: str, file: str, source: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "packages" / file
    stub.parent.mkdir(parents=True)
    for folder in stub.parents[: file.count("/")]:
        (folder / "__init__.py").touch()
    stub.write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    shown = CurvesVisualizer(program, name=f"test_{program}", save_dir=str(tmp_path / "my_run" / "20300101"))
    shown.add_scalars({"loss": 0.5, "gate": 0.25}, step=3)
    module = __import__(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."), fromlist=["calls"])
    assert [kind for kind, _ in module.calls] == ["init", "log"]
    assert module.calls[0][1][run] == "my_run" and module.calls[1][1]["gate"] == 0.25
    local = (tmp_path / "my_run" / "20300101" / "vis_data" / "scalars.json").read_text()
    assert json.loads(local) == {"loss": 0.5, "gate": 0.25, "step": 3}
    forget_runs()


def test_an_absent_program_is_told_before_the_model_is_built(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    _, output = project.train(project.config("absent", "pretrain", batch_size=8, curves="wandb"), how="here")
    assert "curves='wandb' needs the package wandb, which is not installed: pip install 'mg_llava[wandb]'" in output
    assert "parameters trained" not in output
    _, output = project.train(project.config("unknown", "pretrain", batch_size=8, curves="tensorbord"), how="here")
    assert "curves is 'tensorbord'; allowed: 'tensorboard', 'wandb', 'swanlab', or None" in output
