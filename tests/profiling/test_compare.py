"""The published step, stock XTuner's and ours side by side, at a tiny size through the same code."""

import pytest
import torch

from mg_llava.profiling import _measure, compare
from tests.run import call_here, run_tool


def test_three_ways_side_by_side(monkeypatch):
    for module in (_measure, compare):
        monkeypatch.setattr(module, "run_child", call_here)
    sizes = ["--batch-size", 2, "--text", 12, "--steps", 1, "--threads", 1, "--boxes", 0, 3, "--peak-tflops", 1]
    threads = torch.get_num_threads()
    try:
        done = run_tool("benchmark", "compare", *sizes, "--shapes", "frozen", "lora", "--model", "packing=256")
    finally:
        torch.set_num_threads(threads)
    assert done.status == 0, done.err
    result = done.result
    assert result["benchmark"] == "compare" and result["error"] <= 1e-5  # ours and the published way
    for by_boxes in result["points"].values():
        assert set(by_boxes["0"]) == {"published", "stock", "ours"} and set(by_boxes["3"]) == {"published", "ours"}
        for ways in by_boxes.values():
            for point in ways.values():
                assert point["samples_per_s"] > 0 and point["peak_mb"] > 0 and 0 <= point["waste"] < 1
            assert 0 < ways["ours"]["mfu"] < ways["ours"]["hfu"] < 1  # checkpointing computes the LLM again
            assert ways["ours"]["waste"] <= ways["published"]["waste"]  # packed
        assert "mfu" not in by_boxes["0"]["stock"] and by_boxes["0"]["stock"]["loss"] > 1
    last = result["points"]["lora"]["3"]
    rates = [last[way]["samples_per_s"] for way in ("ours", "published")]
    assert result["speedup"] == pytest.approx(rates[0] / rates[1], rel=1e-2)
    assert "frozen, 0 boxes, stock" in done.out and "lora, 3 boxes, ours" in done.out
