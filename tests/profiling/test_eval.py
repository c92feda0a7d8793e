"""The evaluation benchmark at a small size: the same replies in all ways, and the line for machines."""

import argparse

import pytest

from mg_llava.profiling import _miniature
from mg_llava.profiling import eval as evaluation


@pytest.mark.slow
def test_batches_give_the_same_replies(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_miniature, "_newest", lambda: None)
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    result = evaluation.run(parser.parse_args(["--pictures", "2", "--rounds", "1", "--batch-size", "8"]))
    assert result["identical"] and result["questions"] == 14 and not result["trained"]
    assert set(result["samples_per_s"]) == {"one", "runner_1", "batched"}
    rates = result["samples_per_s"]
    assert result["speedup"] == pytest.approx(rates["batched"] / rates["one"], abs=0.01, rel=0.01)
    assert "replies are identical" in capsys.readouterr().out
