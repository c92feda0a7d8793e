"""torch.compile of the vision parts: same numbers, same names of parameters, and a word where nothing can compile."""

import shutil
from pathlib import Path

import pytest
import torch
from torch._inductor import codecache, cpp_builder, cpu_vec_isa
from torch._inductor import config as inductor

from mg_llava.data.collate import collate
from mg_llava.models import compilation
from tests import toy


@pytest.fixture
def _denormals():
    """Compiled code is linked with -ffast-math: loading it makes this process take tiny numbers for zero."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def _headers(tmp_path, monkeypatch):
    """Read torch's headers once, not for each of some thirty kernels: ``g++`` takes ``X.h.gch`` for ``X.h``."""
    compile_file = cpp_builder.run_compile_cmd

    def compile_both(command, cwd):
        header = codecache.cpp_prefix_path()
        words = [word for word in command.split() if not word.endswith(".cpp") and word[:2] not in ("-l", "-L")]
        words[-1] = f"{header}.gch"  # after -o
        if not Path(words[-1]).exists():
            compile_file(" ".join([words[0], "-x c++-header", header, *words[1:]]), cwd)
        return compile_file(command, cwd)

    monkeypatch.setattr(cpp_builder, "run_compile_cmd", compile_both)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    codecache.cpp_prefix_path.cache_clear()
    yield
    codecache.cpp_prefix_path.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("_denormals", "_headers")
@pytest.mark.skipif(not any(map(shutil.which, compilation._COMPILERS)), reason="needs a C++ compiler")
def test_compiled_parts_take_the_same_step(toy_paths, monkeypatch):
    batch = collate(toy.make_batch([(9, 1), (7, 1)], seed=4))["data"]

    def step(**options):
        model = toy.build_model(toy_paths, **options).train()
        loss = model(batch)["loss"]
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return model, {"loss": loss.detach(), **model.monitor, **gradients}

    plain, expected = step()
    # plain loops and no pool of compilers; looking for vector instructions alone takes as long as eight kernels.
    # torch's cache of graphs, kept between runs, does not know that: it would give vector code to a plain compiler
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)
    with inductor.patch({"compile_threads": 1, "fx_graph_cache": False}):
        compiled, found = step(compile_vision=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.visual_encoder._compiled_call_impl is not None
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_a_missing_compiler_is_named(toy_paths, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler \(g\+\+, .*compile_vision=False"):
        toy.build_model(toy_paths, compile_vision=True)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs the package triton"):
        compilation.check_compiler()
