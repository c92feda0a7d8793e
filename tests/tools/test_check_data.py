"""The command line of the data doctor: exit status, report, messages, kill and resume."""

import json
import signal
import time

import pytest

from tests import forked
from tests.data.broken import write_broken, write_clean
from tests.run import TOOLS, run_tool

STOPPING = """
import itertools, runpy, sys, time
from mg_llava.inspection.doctor import images
examine, examined = images.examine_picture, itertools.count()
def examine_some(*arguments):
    if next(examined) == 40:  # facts of 32 pictures are kept together
        time.sleep(600)
    return examine(*arguments)
images.examine_picture = examine_some
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # as Python does
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a tool that stands still after a part of the pictures, so that it is at work whenever the kill comes."""


def write_config(data, **changes):
    path = data.folder / "config.py"
    # Not a named template, so that XTuner need not be imported.
    settings = data.arguments(template={"INSTRUCTION": "USER: {input} ASSISTANT:", "SEP": "\n"}, **changes)
    path.write_text(f"train_dataloader = dict(dataset={settings!r})\n")
    return path


def check(*arguments):
    return run_tool("check_data", *arguments, "--quiet", "--workers", 1)


def test_clean_data(tmp_path):
    data = write_clean(tmp_path / "data")
    status, out, _ = check(write_config(data), "--out", tmp_path / "report.json", "--strict")
    assert status == 0 and "0 errors, 0 warnings: training can start" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["training_would_fail"] and report["config"].endswith("config.py")


def test_broken_data(tmp_path):
    data = write_broken(tmp_path / "data", with_refused=False)
    config = write_config(data)
    status, out, _ = check(config, "--out", tmp_path / "a.json", "--eval", data.evaluation())
    assert status == 0 and "training can start" in out and "eval_leak: 1" in out
    assert check(config, "--out", tmp_path / "a.json", "--strict")[0] == 1
    options = ["--cfg-options", "train_dataloader.dataset.faults.bad_image=error"]
    status, out, _ = check(config, "--out", tmp_path / "a.json", *options)
    assert status == 1 and "training would fail" in out


def test_a_missing_path_is_one_clear_message(tmp_path):
    data = write_clean(tmp_path / "data")
    status, out, _ = check(write_config(data, image_folder="/nowhere/images"), "--out", tmp_path / "a.json")
    assert status == 1 and out.count("/nowhere/images does not exist") == 1
    assert "1 error, 0 warnings" in out


def test_usage(tmp_path):
    data = write_clean(tmp_path / "data", records=1)
    config = write_config(data)
    assert check(tmp_path / "none.py")[0] == 2
    assert check(config, "--limit", "0")[0] == 2
    (tmp_path / "other.py").write_text("model = dict()\n")
    status, _, err = check(tmp_path / "other.py", "--out", tmp_path / "a.json")
    assert status == 2 and "has no train_dataloader.dataset" in err
    (tmp_path / "other.py").write_text("model = (\n")
    status, _, err = check(tmp_path / "other.py", "--out", tmp_path / "a.json")
    assert status == 2 and "other.py cannot be read (SyntaxError" in err
    for settings, said in (
        ("type='mg_llava.LLaVADatset', data_path='x'", "did you mean 'LLaVADataset'"),
        ("type='mg_llava.LLaVADataset'", "needs data_path"),
        ("type='Other', data_path='x'", "a data set of another kind is not checked"),
    ):
        (tmp_path / "other.py").write_text(f"train_dataloader = dict(dataset=dict({settings}))\n")
        status, out, _ = check(tmp_path / "other.py", "--out", tmp_path / "a.json")
        assert status == ("Other" not in settings) and said in out, out
    status, _, err = check(config, "--out", tmp_path / "a.json", "--eval", "/nowhere/eval.tsv")
    assert status == 1 and "/nowhere/eval.tsv does not exist" in err


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_report(tmp_path):
    data = write_clean(tmp_path / "data", records=160)
    config = write_config(data)
    script, out = tmp_path / "stopping.py", tmp_path / "a.json"
    script.write_text(STOPPING)
    cache = tmp_path / "a.pictures.jsonl"
    command = [script, TOOLS / "check_data.py", config, "--out", out, "--workers", "1", "--quiet"]
    process = forked.start(*command, printed=tmp_path)
    end = time.monotonic() + 240
    while process.exitcode is None and time.monotonic() < end and not (cache.is_file() and cache.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.join()
    known, printed = cache.read_bytes().count(b"\n"), (tmp_path / "err").read_text()
    assert process.exitcode == -signal.SIGKILL and 0 < known < 160 and not out.exists(), printed
    assert check(config, "--out", out)[0] == 0
    assert cache.read_bytes().count(b"\n") == 160
    resumed = json.loads(out.read_text())
    assert check(config, "--out", out, "--fresh")[0] == 0
    assert json.loads(out.read_text()) == resumed
