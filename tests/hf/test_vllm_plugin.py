"""vLLM's entry point, without vLLM; tests/inference/test_vllm.py has the real one."""

import ast
import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.run import ROOT


def test_the_entry_point_registers_the_model_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = re.findall(r'"vllm.general_plugins": \["mg_llava = (.+)"\]', (ROOT / "setup.py").read_text())
    known: dict[str, str] = {}
    registry = SimpleNamespace(register_model=known.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    module, function = entry.split(":")
    getattr(importlib.import_module(module), function)()
    (place,) = known.values()
    file = ROOT / f"{place.split(':')[0].replace('.', '/')}.py"
    classes = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    assert list(known) == ["MGLLaVAForConditionalGeneration"] and classes == [place.split(":")[1]]


def test_the_package_needs_no_vllm() -> None:
    code = "import sys; sys.modules['vllm'] = None; import mg_llava.hf, mg_llava.hf.vllm_plugin"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
