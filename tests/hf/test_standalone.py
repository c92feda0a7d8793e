"""Folders that load where this package, XTuner and mmengine are not installed."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mg_llava.hf import MGLLaVAForConditionalGeneration, MGLLaVAProcessor
from mg_llava.hf.export import folder_files
from mg_llava.hf.standalone import copy_sources
from tests.hf.conftest import BOXES, PERCEPTION, Exported, make_picture, training_config, write_folder

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
LOAD = """
import json, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, picture, again = sys.argv[1:4]
trust = {trust}
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
conversation = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "what is there?"}}]}}]
inputs = processor(conversation=conversation, images=picture, boxes={boxes})
output = model.generate(**inputs, max_new_tokens=6)
if again:
    model.save_pretrained(again)
    processor.save_pretrained(again)
    AutoProcessor.from_pretrained(again, **trust)
    resaved = AutoModel.from_pretrained(again, **trust)
    assert torch.equal(resaved.generate(**inputs, max_new_tokens=6), output)
print(json.dumps({{
    "ids": output.tolist(),
    "class": type(model).__module__,
    "loaded": sorted({{name.split(".")[0] for name in sys.modules}} & {{"mg_llava", "xtuner", "mmengine"}}),
}}))
"""


def run(code: str, blocked: set[str], tmp_path: Path, *arguments: object) -> dict:
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # torch would ask the package that is blocked
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "toy-alone"
    write_folder(folder, exported.paths, standalone=True, parts=[PERCEPTION])
    return folder


def wanted_ids(folder: Path) -> list:
    model = MGLLaVAForConditionalGeneration.from_pretrained(folder)
    processor = MGLLaVAProcessor.from_pretrained(folder)
    inputs = processor(
        conversation=[{"role": "user", "content": "what is there?"}], images=make_picture(), boxes=BOXES
    )
    return model.generate(**inputs, max_new_tokens=6).tolist()


@pytest.mark.slow
def test_without_the_package(alone: Path, tmp_path: Path) -> None:
    make_picture().save(tmp_path / "picture.png")
    blocked = {"mg_llava", "xtuner", "mmengine", "open_clip"}
    code = LOAD.format(trust={"trust_remote_code": True}, boxes=BOXES)
    seen = run(code, blocked, tmp_path, alone, tmp_path / "picture.png", tmp_path / "again")
    assert seen["ids"] == wanted_ids(alone)
    assert seen["class"].startswith("transformers_modules.") and seen["loaded"] == []


@pytest.mark.slow
def test_with_the_package_no_code_is_run(alone: Path, tmp_path: Path) -> None:
    make_picture().save(tmp_path / "picture.png")
    code = "import mg_llava.hf" + LOAD.format(trust={}, boxes=BOXES)
    seen = run(code, {"xtuner", "open_clip"}, tmp_path, alone, tmp_path / "picture.png", "")
    assert seen["ids"] == wanted_ids(alone)
    assert seen["class"] == "mg_llava.hf.modeling" and "xtuner" not in seen["loaded"]


def test_sources_are_flat_and_complete(tmp_path: Path) -> None:
    names = copy_sources(tmp_path, {"mg_llava.models.systems.mg_llava"})
    assert names == sorted(file.name for file in tmp_path.iterdir())
    for name in names:
        text = (tmp_path / name).read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in names, (name, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {"mg_llava", "mmengine", "xtuner"} & {module.split(".")[0] for module in modules}, name
    # transformers copies what the file it opens names, and nothing else
    for entry in (name for name in names if name.endswith("_mg_llava.py") and not name.startswith("models_")):
        from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

        direct = {f"{module}.py" for module in get_relative_imports(tmp_path / entry)}
        assert {Path(file).name for file in get_relative_import_files(str(tmp_path / entry))} <= direct


def test_copies_follow_the_sources(tmp_path: Path) -> None:
    """Beside the header, only lines with imports differ."""
    copy_sources(tmp_path, {"mg_llava.models.fusion.conv_gate"})
    for copy, source in {
        "models_fusion_conv_gate.py": "models/fusion/conv_gate.py",
        "data_pictures_geometry.py": "data/pictures/geometry.py",
    }.items():
        ours = (Path(__file__).parents[2] / "mg_llava" / source).read_text().splitlines()
        theirs = (tmp_path / copy).read_text().splitlines()[1:]
        assert len(ours) == len(theirs)
        changed = [line for line, other in zip(ours, theirs, strict=True) if line != other]
        assert all(line.startswith("from ") for line in changed)


@pytest.mark.parametrize(("imports", "reason"), [("", None), ("import hypothesis\n", "imports hypothesis at its top")])
def test_parts_from_outside_the_package(
    toy_paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: str, reason: str | None
) -> None:
    """A part in one module of its own comes along; one that needs more is refused, and nothing is left."""
    name = f"outside_{len(imports)}"
    (tmp_path / f"{name}.py").write_text(
        f"{imports}from mg_llava.models.projectors import MLPProjector\nfrom mg_llava.registry import MODELS\n\n\n"
        f"@MODELS.register_module()\nclass Projector{len(imports)}(MLPProjector):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    config = training_config(toy_paths, projector={"type": f"mg_llava.Projector{len(imports)}"})
    if reason is None:
        assert f"{name}.py" in folder_files(config, tmp_path / "hf", standalone=True)
        text = (tmp_path / "hf" / "modeling_mg_llava.py").read_text()
        assert (
            f"from .{name} import" in text and "mg_llava.registry" not in (tmp_path / "hf" / f"{name}.py").read_text()
        )
    else:
        with pytest.raises(ValueError, match=reason):
            folder_files(config, tmp_path / "hf", standalone=True)
        assert not list((tmp_path / "hf").iterdir())
