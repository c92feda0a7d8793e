"""The tool from its arguments to its exit status."""

import json
from pathlib import Path

import pytest

from tests import toy
from tests.run import TOOLS, Ran, run_python, run_tool

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
        tokens=dict(per_canvas=4),
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


def run(*arguments: object) -> Ran:
    return run_tool("browse_dataset", *arguments)


def test_samples_by_number(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(config, "--index", 0, 3, "--out", out, "--html")
    assert done.status == 0 and done.out == f"wrote {out / 'index.html'}\n"
    content = json.loads((out / "samples.json").read_text())
    assert [sample["id"] for sample in content["samples"]] == ["toy_0", "toy_3"]
    assert content["samples"][0]["notes"] == ["the model of this config has no box branch"]
    for sample in content["samples"]:
        assert (out / sample["drawing"]).stat().st_size > 1000
        assert sample["drawing"] in (out / "index.html").read_text()


def test_bad_samples_do_not_stop_the_others(config: Path, tmp_path: Path) -> None:
    done = run(config, "--index", 1, 2, 50, 0, "--out", tmp_path / "out")
    assert done.status == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "sample 50 does not exist" in errors[0] and "2_0.png" in errors[1]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_ids_random_and_sources(config: Path, tmp_path: Path) -> None:
    assert run(config, "--ids", "toy_1", "toy_1", "toy_5", "--out", tmp_path / "ids").status == 0
    assert len(list((tmp_path / "ids").glob("*.png"))) == 2
    done = run(config, "--random", 3, "--seed", 4, "--source", "records", "--out", tmp_path / "random")
    assert done.status in (0, 1)
    content = json.loads((tmp_path / "random" / "samples.json").read_text())
    assert len(content["samples"]) + len(content["problems"]) == 3
    done = run(config, "--random", 3, "--source", "coco", "--out", tmp_path / "x")
    assert done.status == 1 and "the sources are: records" in done.err


@pytest.mark.parametrize("extra", [["--index", "0", "--random", "1"], [], ["--random", "0"]])
def test_wrong_arguments(config: Path, tmp_path: Path, extra: list[str]) -> None:
    assert run(config, "--out", tmp_path / "out", *extra).status == 2


def test_unreadable_config_and_font(config: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "none.py", "--index", 0, "--out", tmp_path / "out")
    assert done.status == 1 and "none.py does not exist" in done.err
    done = run(config, "--index", 0, "--out", tmp_path / "out", "--font", tmp_path / "a.ttf")
    assert done.status == 1 and "a.ttf cannot be read" in done.err


def test_help_runs_by_itself() -> None:
    done = run_python(TOOLS / "browse_dataset.py", "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout and "--random N" in done.stdout
