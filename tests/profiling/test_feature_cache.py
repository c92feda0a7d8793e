"""The benchmark of the feature cache, at a tiny size through the same code."""

import pytest
import torch

from mg_llava.profiling import feature_cache
from tests.run import call_here, run_tool


def test_steps_from_a_cache_are_those_from_pictures(monkeypatch):
    monkeypatch.setattr(feature_cache, "run_child", call_here)
    sizes = ["--batch-size", "2", "--steps", "1", "--warmup", "1", "--boxes", "3", "--text", "12", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        done = run_tool("benchmark", "feature-cache", *sizes, "--dtypes", "int8")
    finally:
        torch.set_num_threads(threads)
    *table, _ = done.out.splitlines()
    result = done.result
    assert result["benchmark"] == "feature-cache" and result["dtype"] == "int8"
    assert {"speedup", "step_speedup", "speedup_cpu", "memory_ratio"} <= set(result)
    assert 0 < result["error"] < 1e-3 and 0 < result["rounding"] < 0.02
    ways = result["ways"]
    assert len(ways["pictures"]["losses"]) == 2 and ways["pictures"]["parts"]["encoders"] > 0
    assert ways["int8"]["parts"]["encoders"] == 0 and ways["int8"]["fill_seconds"] > 0
    # 8 x 8 tokens of each map and three boxes, against 256 x 256 pixels of three bytes
    assert 0.1 < result["bytes_ratio"] < 0.2
    assert any(line.startswith("pictures ") for line in table) and "filling takes" in table[-1]
    assert ways["int8"]["losses"] == pytest.approx(ways["pictures"]["losses"], rel=1e-3)
