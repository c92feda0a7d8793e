"""The server's benchmark at a small size: one client and several get the same answers, and the line for machines."""

import argparse

import pytest

from mg_llava.profiling import _miniature, serve


@pytest.mark.slow
def test_clients_at_once_get_the_same_answers(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_miniature, "_newest", lambda: None)
    monkeypatch.setattr(serve, "MOST_TOKENS", 4)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    result = serve.run(parser.parse_args(["--questions", "6", "--clients", "3", "--rounds", "1"]))
    assert result["identical"] and result["questions"] == 6 and not result["trained"]
    rates = list(result["answers_per_s"].values())
    gains = [result[f"speedup{kind}"] for kind in ("", "_short", "_shared")]
    for gain, alone, many in zip(gains, rates[::2], rates[1::2], strict=True):
        assert gain == pytest.approx(many / alone, abs=0.01, rel=0.01)
    assert "answers are identical" in capsys.readouterr().out
