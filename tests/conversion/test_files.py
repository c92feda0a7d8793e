"""Files and folders are there whole or not at all, and writing them needs the memory of one tensor."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from safetensors.torch import load_file, save_file

from mg_llava.conversion import ConversionError, ConversionOptions, convert, writers
from mg_llava.conversion.files import StagedFolder
from mg_llava.conversion.folder_writing import parse_size, plan_shards
from mg_llava.conversion.writers import write_pth, write_safetensors
from mg_llava.models.weights.stored import StoredTensor, map_weights
from mg_llava.work.atomic import NoRoomError
from tests import toy
from tests.conversion.conftest import State, assert_same, config_values, read
from tests.conversion.conftest import write_pth as save_pth
from tests.conversion.test_convert import write_zero

Write = Callable[[Path, dict[str, StoredTensor]], None]


@pytest.fixture()
def small_files() -> Iterator[None]:
    """No file may be larger than 30 kB, as with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# -- formats ----------------------------------------------------------------------------------------------------------

TENSORS = st.dictionaries(
    st.text("abc.é0", min_size=1, max_size=6),
    st.tuples(
        st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool"]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(specs=TENSORS)
def test_what_is_written_is_read_by_the_formats_own_libraries(
    specs: dict[str, tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    state = {name: (torch.randn(shape) * 100).to(getattr(torch, dtype)) for name, (dtype, shape) in specs.items()}
    stored = {name: StoredTensor.of(tensor) for name, tensor in state.items()}
    write_safetensors(folder / "a.safetensors", stored, {"note": "é"})
    assert_same(load_file(folder / "a.safetensors"), state)
    assert map_weights(folder / "a.safetensors")[1] == {"format": "pt", "note": "é"}
    write_pth(folder / "a.pth", stored, {"meta": {"iter": 3}})
    for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
        content = torch.load(folder / "a.pth", map_location="cpu", **options)
        assert content["meta"] == {"iter": 3}
        assert_same(content["state_dict"], state)
    assert_same({name: tensor.read() for name, tensor in map_weights(folder / "a.pth")[0].items()}, state)


def test_memory_layouts_do_not_matter(tmp_path: Path) -> None:
    state = {"t": torch.randn(3, 4).t(), "c": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)}
    stored = {name: StoredTensor.of(tensor) for name, tensor in state.items()}
    write_safetensors(tmp_path / "a.safetensors", stored)
    assert_same(load_file(tmp_path / "a.safetensors"), state)
    write_pth(tmp_path / "a.pth", stored)
    assert_same(read(tmp_path / "a.pth"), state)


def test_tensors_that_changed_since_they_were_announced(tmp_path: Path) -> None:
    stored = {"a": StoredTensor((2,), torch.float32, lambda: torch.zeros(3))}
    for write in (write_safetensors, write_pth):
        with pytest.raises(ConversionError, match=r"a was announced as \(2,\) torch.float32 but is \(3,\)"):
            write(tmp_path / "a", stored)
    assert not names(tmp_path)


@given(sizes=st.lists(st.integers(0, 50), max_size=20), limit=st.integers(1, 60))
def test_shards(sizes: list[int], limit: int) -> None:
    tensors = {f"t{n}": StoredTensor((size,), torch.int8, lambda: torch.empty(0)) for n, size in enumerate(sizes)}
    shards = plan_shards(tensors, limit)
    assert [name for shard in shards.values() for name in shard] == list(tensors)
    for shard in shards.values():
        assert (
            sum(tensors[name].nbytes for name in shard) <= limit or len([n for n in shard if tensors[n].nbytes]) == 1
        )


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 MB", 1_500_000), ("2KiB", 2048), (7, 7)])
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    for bad in ("", "GB", "-1GB", "many", "inf", "1e400GB"):
        with pytest.raises(ConversionError, match="is no size of a shard"):
            parse_size(bad)


# -- nothing is left half-written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_safetensors, write_pth])
def test_disk_full_leaves_the_old_file(write: Write, tmp_path: Path, small_files: None) -> None:
    file = tmp_path / "a.weights"
    write(file, {"a": StoredTensor.of(torch.ones(4))})
    before = file.read_bytes()
    big = {f"t{n}": StoredTensor.of(torch.ones(1000)) for n in range(20)}
    with pytest.raises(NoRoomError, match=r"is full while writing .*a.weights .* make room and try again"):
        write(file, big)
    assert file.read_bytes() == before and names(tmp_path) == {"a.weights"}


@pytest.mark.parametrize("write", [write_safetensors, write_pth])
@pytest.mark.parametrize("when", ["write", "sync"])
def test_errors_and_kills_leave_the_old_file(
    write: Write, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.weights"
    file.write_bytes(b"old")

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt if when == "write" else OSError(errno.ENOSPC, "No space left on device")

    stored = {"a": StoredTensor.of(torch.ones(4))}
    if when == "write":
        stored["b"] = StoredTensor((2,), torch.float32, stop)
    else:
        monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt if when == "write" else NoRoomError):
        write(file, stored)
    assert file.read_bytes() == b"old" and names(tmp_path) == {"a.weights"}


def test_data_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("move"), move(a, b)))
    write_pth(tmp_path / "a", {"a": StoredTensor.of(torch.ones(4))})
    assert events == ["sync", "move", "sync"]


def test_folder_is_refused_when_the_disk_cannot_hold_it(
    stage_2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for to in ("parts", "mmengine"):
        with pytest.raises(ConversionError, match=r"needs 0.00 GB, but its disk has 0.00 GB free"):
            convert(stage_2, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()


def test_existing_targets(stage_2: Path, state: State, tmp_path: Path) -> None:
    target = tmp_path / "out.pth"
    target.write_bytes(b"old")
    with pytest.raises(ConversionError, match=r"out.pth exists; give another name, or --overwrite"):
        convert(stage_2, target, "mmengine")
    assert target.read_bytes() == b"old"
    convert(stage_2, target, "mmengine", ConversionOptions(overwrite=True))
    convert(target, target, "reference", ConversionOptions(overwrite=True))  # onto itself
    assert_same(read(target), state)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for options, message in (
        (ConversionOptions(), "is not empty"),
        (ConversionOptions(overwrite=True), "was not written by this tool"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(stage_2, folder, "parts", options)
    assert names(folder) == {"thesis.txt"}
    with pytest.raises(ConversionError, match="is a folder"):
        convert(stage_2, folder, "mmengine")
    with pytest.raises(ConversionError, match="is a file"):
        convert(stage_2, target, "parts")
    with pytest.raises(ConversionError, match="unknown target 'onnx'; known: hf, parts, reference, mmengine"):
        convert(stage_2, target, "onnx")  # type: ignore[arg-type]


def test_failed_overwrite_leaves_the_old_folder(stage_2: Path, state: State, tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "out"
    convert(stage_2, target, "parts")
    before = {file: file.read_bytes() for file in sorted(target.rglob("*")) if file.is_file()}
    move = os.replace

    def fail(source: Path, destination: Path) -> None:
        if Path(destination) == target and Path(source).name.endswith(".partial"):
            raise OSError(errno.EACCES, "Permission denied")
        move(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Permission denied"):
        convert(stage_2, target, "parts", ConversionOptions(overwrite=True, dtype="float16"))
    assert {file: file.read_bytes() for file in sorted(target.rglob("*")) if file.is_file()} == before
    monkeypatch.undo()
    convert(stage_2, target, "parts", ConversionOptions(overwrite=True, dtype="float16"))
    assert load_file(target / "llm" / "model.safetensors")["lm_head.weight"].dtype == torch.float16
    assert names(tmp_path) == {"out"}


def test_disk_full_in_the_middle_of_a_folder_and_going_on(
    stage_2: Path, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, options = tmp_path / "out", ConversionOptions(max_shard_size="20KB")
    partial = tmp_path / ".out.partial" / "llm"
    write, calls = writers._write_tensor, []

    def full(file: Any, name: str, tensor: StoredTensor) -> None:
        calls.append(name)
        if len(calls) == 33:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, name, tensor)

    monkeypatch.setattr(writers, "_write_tensor", full)
    with pytest.raises(NoRoomError, match=r"the disk is full while writing .*/llm/model-0000\d-of"):
        convert(stage_2, target, "parts", options)
    assert not target.exists()
    done = {file.name: file.stat().st_mtime_ns for file in partial.glob("*.safetensors")}
    assert done
    convert(stage_2, target, "parts", options)
    assert calls.count("lm_head.weight") <= 2 and len(calls) < 33 + 41
    assert all((target / "llm" / name).stat().st_mtime_ns == time for name, time in done.items())
    assert names(tmp_path) == {"out"}
    convert(target, tmp_path / "back.pth", "mmengine")
    assert_same(read(tmp_path / "back.pth"), state)


def test_leftovers_of_another_conversion_are_not_used(tmp_path: Path) -> None:
    first = StagedFolder(tmp_path / "out", "one")
    first.write("a", lambda path: path.write_text("first"))
    second = StagedFolder(tmp_path / "out", "two")
    assert second.write("a", lambda path: path.write_text("second"))
    again = StagedFolder(tmp_path / "out", "two")
    assert not again.write("a", lambda path: path.write_text("never"))
    (again.path / "a").write_text("longer than what was recorded")
    assert StagedFolder(tmp_path / "out", "two").write("a", lambda path: path.write_text("third"))


# -- memory -----------------------------------------------------------------------------------------------------------

WIDTH, INNER, LAYERS = 256, 2048, 8
TENSOR_MB = 4 * WIDTH * INNER / 1e6
SHARD_MB = 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, toy_paths: dict[str, str]) -> dict[str, Path]:
    """60 MB of weights in the kinds that come large, with an LLM whose largest tensor has 2 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=300, **sizes)
    with torch.device("meta"):
        names = LlamaForCausalLM(config).state_dict()
    llm = {name: torch.ones(tensor.shape) for name, tensor in names.items()}
    config.save_pretrained(toy.write_tokenizer(folder / "llm"))
    save_file(llm, folder / "llm" / "model.safetensors", metadata={"format": "pt"})
    state = {name: tensor for name, tensor in toy.build_model(toy_paths).state_dict().items() if "jector" not in name}
    for part, width in (("projector", toy.CLIP_WIDTH), ("bbox_projector", sum(toy.STAGE_CHANNELS))):
        for index, size in ((0, width), (2, WIDTH)):
            state[f"{part}.model.{index}.weight"] = torch.ones(WIDTH, size)
            state[f"{part}.model.{index}.bias"] = torch.ones(WIDTH)
    paths = {**toy_paths, "llm": str(folder / "llm")}
    full = {**state, **{f"llm.{name}": tensor for name, tensor in llm.items()}}
    save_pth(folder / "a.pth", full, config_values(paths))
    write_zero(folder / "zero.pth", full, 3, {"cfg": Config(config_values(paths)).pretty_text})
    for name, tensor in llm.items():
        if "proj" in name:
            key = f"llm.base_model.model.{name.removesuffix('.weight')}"
            state[f"{key}.lora_A.default.weight"] = torch.ones(64, tensor.shape[1])
            state[f"{key}.lora_B.default.weight"] = torch.ones(tensor.shape[0], 64)
    save_pth(folder / "lora.pth", state, config_values(paths, "lora"))
    return {"pth": folder / "a.pth", "zero": folder / "zero.pth", "lora": folder / "lora.pth"}


def resident_mb() -> float:
    """Memory of this process, pages of mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("source", "targets"), [("pth", ["hf", "reference"]), ("zero", ["parts", "mmengine"]), ("lora", ["mmengine"])]
)
def test_memory_is_that_of_a_few_tensors(
    large: dict[str, Path], stage_2: Path, source: str, targets: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """At most a shard and a tensor, of 60 MB and more; each target is made from the one before."""
    write, seen = writers._write_tensor, []

    def observe(file: Any, name: str, tensor: StoredTensor) -> None:
        def read() -> torch.Tensor:
            value = tensor.read() + 0  # touches every page of a mapped file
            seen.append(resident_mb())
            return value

        write(file, name, StoredTensor(tensor.shape, tensor.dtype, read))

    monkeypatch.setattr(writers, "_write_tensor", observe)
    options = ConversionOptions(max_shard_size=f"{SHARD_MB}MB", merge=True)
    given = large[source]
    for to in targets:
        convert(stage_2, tmp_path / f"warm_{to}", to)  # imports and caches
        before = resident_mb()
        seen.clear()
        convert(given, tmp_path / to, to, options)
        given = tmp_path / to
        assert len(seen) > 60
        assert max(seen) - before < SHARD_MB + TENSOR_MB, (to, max(seen) - before)
