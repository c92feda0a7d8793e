"""The tool from its arguments to its exit status."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy

TOOL = Path(__file__).parents[2] / "tools" / "browse_dataset.py"
CONFIG = """
train_dataloader = dict(
    dataset=dict(
        type="mg_llava.LLaVADataset",
        data_path={data_path!r},
        image_folder={image_folder!r},
        box_path={box_path!r},
        tokenizer=dict(type="transformers.AutoTokenizer", pretrained_model_name_or_path={tokenizer!r}),
        template=dict(INSTRUCTION="Q: {{input}} A:"),
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=64),
        tokens_per_image=4,
    )
)
model = dict(type="not built", box_projector=None)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config with toy data, of which picture 2 is missing."""
    data = toy.write_data(tmp_path, records=8) | {"tokenizer": str(toy.write_tokenizer(tmp_path / "tokenizer"))}
    (tmp_path / "images" / "2_0.png").unlink()
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(**data))
    return file


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Runs the tool in this process; gives the exit status."""
    spec = importlib.util.spec_from_file_location("browse_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["browse_dataset.py", *map(str, arguments)])
        return module.main()

    return main


def test_samples_by_number(run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert run(config, "--index", 0, 3, "--out", out, "--html") == 0
    assert capsys.readouterr().out == f"wrote {out / 'index.html'}\n"
    content = json.loads((out / "samples.json").read_text())
    assert [sample["id"] for sample in content["samples"]] == ["toy_0", "toy_3"]
    assert content["samples"][0]["notes"] == ["the model of this config has no box branch"]
    for sample in content["samples"]:
        assert (out / sample["drawing"]).stat().st_size > 1000
        assert sample["drawing"] in (out / "index.html").read_text()


def test_bad_samples_do_not_stop_the_others(run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(config, "--index", 1, 2, 50, 0, "--out", tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "sample 50 does not exist" in errors[0] and "2_0.png" in errors[1]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_ids_random_and_sources(run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(config, "--ids", "toy_1", "toy_1", "toy_5", "--out", tmp_path / "ids") == 0
    assert len(list((tmp_path / "ids").glob("*.png"))) == 2
    assert run(config, "--random", 3, "--seed", 4, "--source", "records", "--out", tmp_path / "random") in (0, 1)
    content = json.loads((tmp_path / "random" / "samples.json").read_text())
    assert len(content["samples"]) + len(content["problems"]) == 3
    assert run(config, "--random", 3, "--source", "coco", "--out", tmp_path / "x") == 1
    assert "the sources are: records" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--index", "0", "--random", "1"], [], ["--random", "0"]])
def test_wrong_arguments(run, config: Path, tmp_path: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(config, "--out", tmp_path / "out", *extra)
    assert exit_info.value.code == 2


def test_unreadable_config_and_font(run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "none.py", "--index", 0, "--out", tmp_path / "out") == 1
    assert "none.py does not exist" in capsys.readouterr().err
    assert run(config, "--index", 0, "--out", tmp_path / "out", "--font", tmp_path / "a.ttf") == 1
    assert "a.ttf cannot be read" in capsys.readouterr().err


def test_help_runs_by_itself() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout and "--random N" in done.stdout
