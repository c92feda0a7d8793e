"""A wheel of the checkout, installed elsewhere: it has every file, every command says what it takes, and they work."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from mg_llava import commands
from tests import forked, toy
from tests.end_to_end.conftest import Project
from tests.hf.conftest import write_folder
from tests.house.source import ROOT
from tests.inference.serving_toys import a_picture, image, text, user
from tests.tools.test_evaluate import write_mmbench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("mg_llava", "setup.py", "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    pip("wheel", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """The package alone in a folder."""
    pip("install", "--target", wheel.parent / "site", wheel)
    return wheel.parent / "site"


def pip(command: str, *arguments: object) -> None:
    options = ["--no-deps", "--no-build-isolation", "--no-index", *map(str, arguments)]
    given = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", command, *options]
    subprocess.run(given, check=True, capture_output=True)


def run(site: Path, *arguments: object) -> str:
    done = forked.run(site / "bin" / "mg-llava", *arguments, folder=site)
    assert done.status == 0, done.out + done.err
    return done.out


def last(printed: str) -> Any:
    """The value of the last line; in a forked process the log goes to stdout, too."""
    return json.loads(printed.splitlines()[-1])


def test_every_file_of_the_package_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    known = {file.relative_to(ROOT).as_posix() for file in (ROOT / "mg_llava").rglob("*") if file.is_file()}
    missing = sorted(name for name in known - names if "__pycache__" not in name)
    assert not missing, "name them in package_data of setup.py"


def test_it_is_an_interpreters_own_without_the_checkout(site: Path, tmp_path: Path) -> None:
    assert "mg-llava = mg_llava.__main__:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()
    code = "import sys, mg_llava.__main__ as c; print(c.__file__); sys.exit(c.main())"
    command = [sys.executable, "-c", code, "--help"]
    variables = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(str(site))
    assert all(f"  {name} " in done.stdout for name in commands.list_commands())


def test_every_command_says_what_it_takes(site: Path) -> None:
    for name in commands.list_commands():
        said = run(site, name, "--help")
        assert "usage:" in said and (f"mg-llava {name}" in said or name == "train")  # XTuner's own


def test_a_model_is_planned_asked_and_evaluated(
    site: Path, tmp_path: Path, files: dict[str, str], toy_paths: dict[str, str]
) -> None:
    trained = [files["config"], "--checkpoint", files["checkpoint"]]
    asked = ["--question", "what?", "--max-new-tokens", 2]
    folder = tmp_path / "toy"
    write_folder(folder, toy_paths)
    assert last(run(site, "plan", folder, "--json", "-"))["together"] > 0
    predicted = last(run(site, "predict", *trained, *asked, "--image", files["image"], "--json"))
    said = last(run(site, "chat", folder, *asked, "--image", files["image"], "--json"))
    assert {"question", "text", "pictures"} <= predicted.keys() and {"question", "text"} <= said.keys()
    run(site, "convert", files["checkpoint"], "--inspect")
    table, out = write_mmbench(tmp_path / "mmbench.tsv", rows=2), tmp_path / "out"
    assert "pope" in run(site, "evaluate", "--list")
    run(site, "evaluate-mmbench", folder, "--data", table, "--out", out, "--max-new-tokens", 2, "--device", "cpu")
    (entry,) = json.loads((out / "results.json").read_text())["benchmarks"].values()
    assert entry["counts"]["answered"] == 4
    (tmp_path / "said.jsonl").write_text(json.dumps({"index": 0, "prediction": "A"}))
    scored = ["--data", table, "--predictions", tmp_path / "said.jsonl", "--out", tmp_path / "scored.json"]
    run(site, "score", "mmbench", *scored)
    assert json.loads((tmp_path / "scored.json").read_text())
    (tmp_path / "boxes.json").write_text('[{"id": "a", "boxes": [[1, 2, 3, 4]]}]')
    run(site, "convert-boxes", tmp_path / "boxes.json", "--out", tmp_path / "boxes.safetensors")
    assert (tmp_path / "boxes.safetensors").is_file()


def test_a_training_is_looked_at_prepared_and_run(site: Path, tmp_path: Path, toy_paths: dict[str, str]) -> None:
    shutil.copytree(ROOT / "configs" / "_base_", tmp_path / "configs" / "_base_")
    project = Project(tmp_path, toy_paths, toy.write_data(tmp_path / "data", records=2))
    config = project.config("leaf", "instruct", batch_size=2, seed=0, pretrained_pth=None)
    assert "0 errors, 0 warnings" in run(site, "check", config)
    run(site, "browse", config, "--random", 2, "--html", "--out", tmp_path / "browse")
    assert list((tmp_path / "browse").glob("*.html"))
    run(site, "fill-tokens", config, "--folder", tmp_path / "tokens", "--workers", 1)
    run(site, "fill-features", config, "--folder", tmp_path / "features", "--batch-size", 2)
    assert list((tmp_path / "features").glob("*.features"))
    run(site, "train", config, "--work-dir", tmp_path / "work", "--seed", 0)
    assert (tmp_path / "work" / "last_checkpoint").is_file()


def test_pictures_are_searched_and_a_page_explains(site: Path, tmp_path: Path, files: dict[str, str]) -> None:
    marked = Image.new("RGB", (64, 48))
    marked.paste((255, 255, 255), (10, 12, 20, 26))
    marked.save(tmp_path / "marked.png")
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a digit"}]
    (tmp_path / "records.json").write_text(json.dumps([{"id": "a", "image": "marked.png", "conversations": said}]))
    pictures = ["--images", tmp_path, "--detector", "proposals"]
    run(site, "boxes", tmp_path / "records.json", *pictures, "--out", tmp_path / "boxes")
    stored = tmp_path / "boxes" / "boxes.safetensors"
    assert stored.is_file()
    source = [stored, tmp_path / "records.json", tmp_path]
    run(site, "synthesize", "--boxes", *source, "--reserve", "none", "--dry-run", "--out", tmp_path / "made")
    assert (tmp_path / "made" / "plan.json").is_file()
    asked = ["--image", files["image"], "--question", "what?", "--max-new-tokens", 2, "--out", tmp_path / "why"]
    run(site, "explain", files["config"], "--checkpoint", files["checkpoint"], *asked)
    assert list((tmp_path / "why").iterdir())
    given = ["web", files["config"], "--checkpoint", files["checkpoint"], "--port", 0]
    with forked.serving(site / "bin" / "mg-llava", *given, said="the page is at ", folder=site) as (_, url):
        assert '<svg id="stage"' in httpx.get(url, timeout=60).text


ABSENT = {
    "benchmark": ["serve", "--config", "absent.py", "--checkpoint", "absent.pth"],
    "convert-gguf": ["absent.gguf", "--out", "out"],
    "experiments": ["absent.json"],
    "judge": ["mm_vet", "--data", "absent.json", "--predictions", "absent", "--out", "out", "--local", "absent"],
    "measure-grounding": ["absent.py", "--checkpoint", "absent.pth"],
    "refine": ["absent.py", "--checkpoint", "absent.pth", "--image", "absent.png", "--out", "out"],
}


@pytest.mark.parametrize("name", ABSENT)
def test_other_commands_say_what_is_absent(site: Path, tmp_path: Path, name: str) -> None:
    """Their inputs are large or of other models; they work up to reading them."""
    done = forked.run(site / "bin" / "mg-llava", name, *ABSENT[name], folder=site)
    assert done.status in (1, 2) and "absent" in done.err and "Traceback" not in done.err


def test_a_model_is_served(site: Path, files: dict[str, str]) -> None:
    given = ["serve", files["config"], "--checkpoint", files["checkpoint"], "--port", 0]
    program = site / "bin" / "mg-llava"
    with forked.serving(program, *given, said="serving mg-llava at ", folder=site) as (_, url):
        with OpenAI(base_url=url, api_key="none", timeout=60) as client:
            asked = user(image(a_picture()), text("what?"))
            reply = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=3)
            assert reply.usage is not None and reply.usage.completion_tokens <= 3
