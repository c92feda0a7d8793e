"""Launches of a step at full size, by part."""

import pytest

from mg_llava.models.recompute import enable_checkpointing
from mg_llava.planning import build_skeleton
from mg_llava.profiling.launches import count_launches
from tests.models.test_waiting import make_full_batch
from tests.planning.conftest import load_config
from tests.run import run_tool


def build(leaf):
    skeleton = build_skeleton(load_config(leaf).model)
    enable_checkpointing(skeleton.model.llm, skeleton.checkpointing)
    return skeleton.model


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_nearly_all_launches_of_a_step_are_in_encoders_and_llm(stage):
    model = build(f"mg_llava_vicuna7b_{stage}")
    found = count_launches(model, make_full_batch(model, [(200, 1)] * 16, 100), autocast=False)
    assert set(found.parts) == {"encoders", "fusion", "projector", "box_projector", "llm", "splice", "loss"}
    assert found.total > 5000 and found.own <= 0.05
    assert set(found.widened) == {"llm"}  # its norms, and nothing else, copy activations to float32
    fewer = count_launches(model, make_full_batch(model, [(200, 1)] * 4, 100), autocast=False)
    for part in ("encoders", "fusion", "projector", "splice"):  # no loop over samples
        assert found.parts[part] == fewer.parts[part], part


@pytest.mark.parametrize(
    ("leaf", "parts"),
    [
        ("mr_mllm/mr_mllm_vicuna7b_pretrain", {"scene", "objects", "shared_queries"}),
        ("tiny_grounding/grounding_qwen2_5_3b_local_alignment", {"fusion", "projector"}),
    ],
)
def test_relatives_are_counted(leaf, parts):
    model = build(leaf)
    found = count_launches(model, make_full_batch(model, [(100, 1)] * 3, 10), autocast=False)
    assert parts <= set(found.parts) and set(found.widened) <= {"llm"}
    assert found.parts["splice"] + found.parts["loss"] < 0.01 * found.total


def test_the_table_of_launches():
    config = "configs/mg_llava_nano_instruct.py"
    done = run_tool("benchmark", "launches", "--config", config, "--batch-size", 3, "--boxes", 0, 4, "--text", 30)
    assert done.status == 0, done.err
    few, many = (done.result["by_boxes"][boxes]["launches"] for boxes in ("0", "4"))
    assert many["box_projector"] > few["box_projector"] and many["encoders"] == few["encoders"]
    assert "beside encoders and LLM" in done.out
