"""The sections of the README that add something, followed to the letter in a copy of the repository."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests import forked
from tests.house.source import ROOT
from tests.inference.serving_toys import a_picture, image, text, user

COPIED = ("mg_llava", "configs", "tools", "tests", "data/nano")
SECTIONS = re.compile(r"^### (Add an? .+?)\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
BLOCKS = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RIDDLES = '[{"id": "a", "question": "What has keys?", "answer": "piano"}]'


def sections() -> dict[str, str]:
    """Text of each section by its title."""
    return dict(SECTIONS.findall((ROOT / "README.md").read_text()))


class Copy:
    """A copy of the repository in which commands run.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "generated", "golden", "*.md", "results.json")
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def follow(self, section: str) -> None:
        """Write the files that a section shows, and copy those that it names."""
        for language, shown in BLOCKS.findall(section):
            if language == "python":
                place = self.folder / shown.splitlines()[0].removeprefix("# ")
                assert not place.exists(), f"{place} is there already"
                place.write_text(shown)
            for line in shown.splitlines():
                if line.startswith("cp "):
                    subprocess.run(line, shell=True, check=True, cwd=self.folder)

    def run(self, *command: object) -> str:
        """Run Python here; returns all that it prints."""
        module = command[0] == "-m"
        program = str(command[1]) if module else self.folder / str(command[0])
        done = forked.run(program, *command[1 + module :], folder=self.folder)
        assert done.status == 0, (done.out + done.err)[-3000:]
        return done.out + done.err


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy in which every section was followed."""
    copy = Copy(tmp_path_factory.mktemp("readme") / "mg_llava")
    for section in sections().values():
        copy.follow(section)
    return copy


def test_every_kind_has_a_short_section() -> None:
    kinds = {"fusion", "encoder", "merger", "loss", "benchmark", "LLM", "system"}
    assert kinds <= {title.split()[-1] for title in sections()}
    for title, section in sections().items():
        lines = [line for line in section.splitlines() if line.strip() and not line.startswith("```")]
        assert 0 < len(lines) <= 15, f"{title} is long"


@pytest.mark.slow
def test_parts_and_system_pass_the_contract(copy: Copy) -> None:
    written = "".join(shown for section in sections().values() for _, shown in BLOCKS.findall(section))
    classes = {name for name in re.findall(r"register_module\(\)\nclass (\w+)", written)} | {"TwoViews"}
    test = "tests/contract/test_registered.py"
    found = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", test, "-k", " or ".join(sorted(classes)))
    assert f"{len(classes)} passed" in found


@pytest.mark.slow
def test_a_benchmark_is_scored(copy: Copy) -> None:
    (copy.folder / "riddles.json").write_text(RIDDLES)
    (copy.folder / "replies.jsonl").write_text('{"index": "a", "prediction": "piano"}\n')
    (command,) = re.findall(r"^python (tools/score.py .+)$", sections()["Add a benchmark"], re.MULTILINE)
    copy.run(*command.split())
    assert '"accuracy": 1.0' in (copy.folder / "result.json").read_text()


@pytest.mark.slow
def test_a_leaf_for_an_llm_loads(copy: Copy) -> None:
    (copy.folder / "show.py").write_text(
        "from mmengine.config import Config; config = Config.fromfile('configs/my_llm_pretrain.py'); "
        "print(config.model.llm.path, config.prompt_template)"
    )
    assert "HuggingFaceTB/SmolLM2-135M-Instruct qwen_chat" in copy.run("show.py")


@pytest.mark.slow
def test_a_system_trains_resumes_converts_plans_predicts_and_serves(copy: Copy) -> None:
    leaf, work = "configs/two_views_pretrain.py", "work_dirs/two_views_pretrain"
    copy.run("data/nano/make_data.py", *("--stage1", 32, "--stage2", 8, "--heldout", 4))
    train = ("-m", "xtuner.tools.train", leaf, "--work-dir", work, "--seed", "0")
    keep = ("--cfg-options", "default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=-1")
    copy.run(*train, *keep)  # two steps of 16 samples
    (copy.folder / work / "iter_2.pth").unlink()
    resumed = copy.run(*train, "--resume", f"{work}/iter_1.pth", *keep)
    assert (copy.folder / work / "iter_2.pth").exists() and "resumed" in resumed.lower()
    copy.run("tools/convert_checkpoint.py", f"{work}/iter_2.pth", "out.pth", "--to", "reference")
    assert "parameters" in copy.run("tools/plan.py", leaf)
    picture = next((copy.folder / "data/nano/generated").rglob("*.jpg"))
    asked = ("--image", picture, "--question", "What is there?", "--json", "--max-new-tokens", 4)
    assert '"text"' in copy.run("tools/predict.py", leaf, "--checkpoint", f"{work}/iter_2.pth", *asked)
    program, given = copy.folder / "tools/serve.py", (leaf, "--checkpoint", f"{work}/iter_2.pth", "--port", 0)
    with (
        forked.serving(program, *given, said="serving mg-llava at ", folder=copy.folder) as (_, url),
        OpenAI(base_url=url, api_key="none", timeout=60) as client,
    ):
        messages: Any = user(image(a_picture()), text("What is there?"))
        reply = client.chat.completions.create(model="mg-llava", messages=messages, max_tokens=3)
        assert reply.usage is not None and 0 <= reply.usage.completion_tokens <= 3
