"""Transformers gets back what XTuner imports of it, at the right moment and once."""

import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch
import transformers
import transformers.utils

from mg_llava import compat
from tests.run import ROOT


def test_transformers_is_completed_when_xtuner_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, compat._XTunerFinder)])
    for names in compat.GONE.values():
        for name in names:
            monkeypatch.setattr(transformers.utils, name, None, raising=False)
            monkeypatch.delattr(transformers.utils, name)
    before = list(sys.meta_path)
    compat.await_xtuner()
    compat.await_xtuner()
    assert len(sys.meta_path) == len(before) + 1
    assert importlib.util.find_spec("json.tool") is not None and len(sys.meta_path) == len(before) + 1
    monkeypatch.delitem(sys.modules, "xtuner.utils", raising=False)
    assert importlib.util.find_spec("xtuner.utils") is not None
    assert sys.meta_path[: len(before)] == before and len(sys.meta_path) == len(before) + 1
    assert all(getattr(transformers.utils, name)() for name in compat.GONE["transformers.utils"])


def test_what_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.utils, "is_safetensors_available", lambda: False, raising=False)
    compat.complete_transformers()
    assert transformers.utils.is_safetensors_available() is False


def test_torch_imports_nothing_heavy_with_it() -> None:
    code = "import sys; import mg_llava.compat; print({'torch', 'transformers', 'mmengine'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_modules_that_are_gone_have_classes_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, compat._AbsentFinder()])
    monkeypatch.setitem(compat.ABSENT, "json.onebit", ("OneBit",))
    monkeypatch.setitem(compat.ABSENT, "json.tool", ("OneBit",))
    module = importlib.import_module("json.onebit")
    monkeypatch.delitem(sys.modules, "json.onebit")
    with pytest.raises(ImportError, match="the installed json has no OneBit any more"):
        module.OneBit(lr=1)
    assert not hasattr(importlib.import_module("json.tool"), "OneBit")  # it is there, and stays as it is


def test_transformers_looks_for_no_packed_samples() -> None:
    """Where it would, positions that begin again stop it at the device and cost a mask for each row."""
    compat.take_masks_as_given()
    if importlib.util.find_spec("transformers.masking_utils") is None:
        assert "transformers.masking_utils" not in sys.modules
        return
    config = transformers.LlamaConfig(attn_implementation="sdpa")
    given = dict(inputs_embeds=torch.zeros(1, 4, 8), attention_mask=None, position_ids=torch.tensor([[0, 1, 0, 0]]))
    masks = importlib.import_module("transformers.masking_utils")
    assert masks.create_causal_mask(config, cache=None, **given) is None
