"""The one reader of weights: the same tensors as torch's own, and nothing that a file holds is run."""

import io
import multiprocessing
import os
import pickle
import zipfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mg_llava.models.weights.archive import CheckpointError, read_archive
from mg_llava.models.weights.guard import safe_torch_load
from mg_llava.models.weights.stored import map_weights
from tests import forked
from tests.hostile import FORMATS, Payload

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def tensors():
    """Every dtype, and every way in which tensors share, skip and stride over storages."""
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict((dtype, torch.arange(5).to(getattr(torch, dtype))) for dtype in DTYPES)
    state["complex"] = torch.tensor([1 + 2j])
    state.update(base=base, view=base[1:3, 2:], transposed=base.t(), expanded=torch.ones(1).expand(7))
    state.update(scalar=torch.tensor(3.5), empty=torch.empty(0, 4), grad=torch.ones(2, requires_grad=True))
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2))
    return state


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_same_tensors_as_torch(tmp_path, zipped, mmap):
    state = tensors()
    torch.save(
        {"state": state, "n": {1, 2}, "t": (None, b"x")}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped
    )
    found = read_archive(tmp_path / "a.pth", "refuse", mmap)
    expected = torch.load(tmp_path / "a.pth", weights_only=False)
    assert found["n"] == expected["n"] and found["t"] == expected["t"]
    assert list(found["state"]) == list(state)
    for name, tensor in expected["state"].items():
        own = found["state"][name]
        assert own.dtype == tensor.dtype and own.stride() == tensor.stride()
        assert own.requires_grad == tensor.requires_grad and type(own) is type(tensor)
        assert torch.equal(own, tensor)
    found["state"]["view"][0, 0] = -1.0  # storages are shared as they were, and are no longer the file's
    assert found["state"]["base"][1, 2] == -1.0
    assert read_archive(tmp_path / "a.pth")["state"]["base"][1, 2] == 8.0


def training_state():
    history = HistoryBuffer([1.5, 2.5], [1, 2])
    info = {"x": np.float64(3), "a": np.arange(3)}
    return {
        "message_hub": {"log_scalars": OrderedDict(loss=history), "runtime_info": info},
        "optimizer": {"param_groups": [ConfigDict(lr=1.0)], "state": {0: {"step": torch.tensor(3.0)}}},
        "meta": {"iter": 3, "cfg": "model = dict()"},
    }


def test_dtypes_without_a_storage_of_their_own(tmp_path):
    state = {"a": torch.arange(4.0).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "a.pth")
    found = read_archive(tmp_path / "a.pth")
    assert {name: (t.dtype, t.float().tolist()) for name, t in found.items()} == {
        name: (t.dtype, t.float().tolist()) for name, t in state.items()
    }


def test_training_state_is_read_exactly_and_saved_again(tmp_path):
    torch.save(training_state(), tmp_path / "a.pth")
    for _ in range(2):
        with safe_torch_load():
            found = torch.load(tmp_path / "a.pth", map_location="cpu")
        history = found["message_hub"]["log_scalars"]["loss"]
        history.update(3.5)
        assert history.mean() == pytest.approx(7.5 / 4) and history.current() == 3.5
        info = found["message_hub"]["runtime_info"]
        assert info["x"] == 3.0 and info["a"].tolist() == [0, 1, 2] and info["a"].dtype == np.int64
        assert found["optimizer"]["param_groups"] == [{"lr": 1.0}]
        history._log_history, history._count_history = history._log_history[:2], history._count_history[:2]
        torch.save(found, tmp_path / "a.pth")
        plain = torch.load(tmp_path / "a.pth", weights_only=False)  # without this package's reader
        assert type(plain["message_hub"]["log_scalars"]["loss"]._log_history) is np.ndarray


def _unpickle(file):
    with open(file, "rb") as stream:
        pickle.load(stream)


@pytest.mark.parametrize("kind", FORMATS)
def test_payloads_are_real(tmp_path, kind):
    """Each hostile file makes its trace when it is opened the ordinary way."""
    state = {"a": torch.ones(2)}
    FORMATS[kind](tmp_path / "a.pth", tmp_path / "trace", state)
    ways = {"script": torch.jit.load, "plain": _unpickle}
    how = ways.get(kind, partial(torch.load, weights_only=False))
    # in a process of its own: a pickle may break whoever opens it
    process = multiprocessing.get_context("fork").Process(target=how, args=(str(tmp_path / "a.pth"),))
    process.start()
    process.join()
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_hostile_files_are_refused_by_name(tmp_path, kind):
    file = tmp_path / "a.pth"
    FORMATS[kind](file, tmp_path / "trace", {"a": torch.ones(2)})
    for read in (map_weights, torch_load):
        with pytest.raises(CheckpointError, match=r"a\.pth.*(save|get|copy).*"):
            read(file)
    assert not (tmp_path / "trace").exists()


def torch_load(file):
    with safe_torch_load():
        torch.load(file, weights_only=False)


def test_objects_beside_the_state_dict_are_inert(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": Payload(tmp_path / "trace")}, tmp_path / "a.pth")
    assert list(map_weights(tmp_path / "a.pth")[0]) == ["a"]
    assert not (tmp_path / "trace").exists()


def edited(file, change):
    """An archive with its pickle changed."""
    with zipfile.ZipFile(file) as source:
        content = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(file, "w") as target:
        for name, data in content.items():
            target.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86", b"K\x09K\x03\x86"),  # a larger tensor than its storage
        (b"K\x03K\x01\x86", b"K\x7fK\x01\x86"),  # strides beyond it
        (b"K\x06", b"K\x60"),  # a storage larger than its record
        (b"torch\nFloatStorage", b"torch\nDoubleStorage"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),  # a record that is not there
    ],
)
def test_tensors_stay_within_their_storages(tmp_path, old, new):
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.pth")
    edited(tmp_path / "a.pth", lambda data: data)
    assert torch.equal(map_weights(tmp_path / "a.pth")[0]["a"].read(), torch.arange(6.0).reshape(2, 3))
    edited(tmp_path / "a.pth", lambda data: data.replace(old, new, 1))
    with pytest.raises(CheckpointError, match="truncated or another kind"):
        map_weights(tmp_path / "a.pth")[0]["a"].read()


def test_open_files_and_places(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    buffer.seek(0)
    with safe_torch_load():
        assert torch.equal(torch.load(buffer)["a"], torch.ones(3))
        buffer.seek(0)
        assert torch.load(buffer, map_location="meta")["a"].is_meta
    assert torch.load.__module__ == "torch.serialization"


def test_what_processes_send_each_other_is_read_as_before():
    """Pickles of tensors hold a file of ``torch.save`` with a bare storage."""
    tensor = torch.arange(6.0).reshape(2, 3).t()
    with safe_torch_load():
        assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)


def test_the_runtime_config_closes_the_doors_of_xtuner(tmp_path):
    """Whatever a library opens after a config was read, it opens safely."""
    torch.save(Payload(tmp_path / "trace"), tmp_path / "a.pth")
    config = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3, "configs", "_base_", "runtime.py")
    (tmp_path / "open.py").write_text(
        "from mmengine.config import Config\n"
        f"Config.fromfile({config!r})\n"
        "from mmengine.runner.checkpoint import CheckpointLoader\n"
        f"CheckpointLoader.load_checkpoint({str(tmp_path / 'a.pth')!r}, map_location='cpu')\n"
    )
    ran = forked.run(tmp_path / "open.py")
    assert "which is neither a tensor nor a plain value and was not run" in ran.err, ran.err[-800:]
    assert not (tmp_path / "trace").exists()


class ByName:
    """A stage of DeepSpeed as Python 3.11.0 to 3.11.3 pickle it, or another attribute of it."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (pytest.importorskip("deepspeed.runtime.zero.config").ZeroStageEnum, self.name)


def test_members_of_enumerations_are_known_by_name_and_nothing_else_of_them(tmp_path):
    torch.save({"zero_stage": ByName("weights"), "w": torch.ones(2)}, tmp_path / "a.pt")
    assert read_archive(tmp_path / "a.pt", "refuse")["zero_stage"] == 3
    torch.save({"zero_stage": ByName("__class__"), "w": torch.ones(2)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="reads __class__ of another object"):
        read_archive(tmp_path / "b.pt", "refuse")
