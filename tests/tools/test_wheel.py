"""A wheel of the checkout, installed elsewhere: it has every file, every command says what it takes, and they work."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from mg_llava import commands
from tests import forked
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


def test_a_model_is_served(site: Path, files: dict[str, str]) -> None:
    given = ["serve", files["config"], "--checkpoint", files["checkpoint"], "--port", 0]
    program = site / "bin" / "mg-llava"
    with forked.serving(program, *given, said="serving mg-llava at ", folder=site) as (_, url):
        with OpenAI(base_url=url, api_key="none", timeout=60) as client:
            asked = user(image(a_picture()), text("what?"))
            reply = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=3)
            assert reply.usage is not None and reply.usage.completion_tokens <= 3
