"""Reading checkpoints of every kind; the DeepSpeed folders of real runs are read in tests/engine/test_launch.py."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.checkpoint import load_training_checkpoint

WEIGHTS = {
    "projector.model.0.weight": torch.arange(6.0).reshape(2, 3).bfloat16(),
    "projector.model.0.bias": torch.tensor([1.5, -2.0]),
    "steps": torch.tensor([7]),
}


def mmengine_checkpoint():
    """Everything mmengine stores beside the weights, objects included."""
    buffer = HistoryBuffer()
    buffer.update(1.0)
    return {
        "meta": {"iter": 3, "cfg": "model = dict()", "seed": 0},
        "state_dict": OrderedDict(WEIGHTS),
        "message_hub": {"log_scalars": OrderedDict(loss=buffer), "runtime_info": {"x": np.float64(1), "s": {1, 2}}},
        "optimizer": {"param_groups": [ConfigDict(lr=1.0)], "state": {0: {"exp_avg": torch.ones(2)}}},
        "param_schedulers": [{"last_step": 3}],
    }


def check(found):
    assert set(found) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name].double(), tensor.double())
        assert found[name].dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)


def test_files(tmp_path):
    torch.save(mmengine_checkpoint(), tmp_path / "iter_3.pth")
    torch.save(WEIGHTS, tmp_path / "bare.bin")
    torch.save(WEIGHTS, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for path in sorted(tmp_path.iterdir()):
        check(load_training_checkpoint(path))
        check(load_training_checkpoint(str(path)))


def test_stored_types_can_be_kept(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    assert load_training_checkpoint(tmp_path / "a.pth", dtype=None)["projector.model.0.weight"].dtype == torch.bfloat16


class Attack:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_stored_code_never_runs(tmp_path, zipped):
    target = str(tmp_path / "made")
    content = {"state_dict": dict(WEIGHTS), "meta": Attack(target)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    if zipped:
        check(load_training_checkpoint(tmp_path / "a.pth"))
    else:
        with pytest.raises(CheckpointError, match=r"holds \w+.mkdir, .* was not run"):
            load_training_checkpoint(tmp_path / "a.pth")
    torch.save({"state_dict": {**WEIGHTS, "projector.b": Attack(target)}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"1 entries .* are no tensors, e.g. projector.b; .* was not run"):
        load_training_checkpoint(tmp_path / "b.pth")
    assert not os.path.exists(target)
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert os.path.exists(target)  # the attack is a real one


def deepspeed_folder(folder, frozen):
    """A ZeRO-2 folder of three processes with two parameter groups, and a ZeRO-3 one, as DeepSpeed lays them out."""
    groups = [
        OrderedDict(a=torch.arange(1.0, 6.0), b=torch.arange(10.0, 14.0).reshape(2, 2)),
        OrderedDict(c=torch.tensor(3.0).reshape(1)),
    ]
    shapes = [OrderedDict((name, t.shape) for name, t in group.items()) for group in groups]
    world = 3

    def shard(vector, rank):
        padded = torch.cat([vector, torch.zeros(-len(vector) % world)])
        return padded.reshape(world, -1)[rank].clone()

    second, third = folder / "zero2.pth", folder / "zero3.pth"
    for path in (second, third):
        path.mkdir()
    for rank in range(world):
        state = {"buffer_names": ["scale"], "shared_params": {"tied": "a"}, "param_shapes": shapes}
        state["module"] = OrderedDict(scale=torch.ones(1).bfloat16())
        state["frozen_param_shapes"] = {"f": torch.Size([2])} if frozen else None
        fragments = {"f": shard(torch.tensor([8.0, 9.0]), rank)} if frozen else None
        torch.save(
            state | {"frozen_param_fragments": fragments}, third / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        )
        if rank == 0:
            whole = {"f": torch.tensor([8.0, 9.0])} if frozen else None
            torch.save(state | {"frozen_param_fragments": whole}, second / "mp_rank_00_model_states.pt")
        flat = [shard(torch.cat([t.flatten() for t in group.values()]), rank) for group in groups]
        states = {"single_partition_of_fp32_groups": flat, "partition_count": [world, world]}
        torch.save({"optimizer_state_dict": states}, second / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        flat = [torch.cat([shard(t.flatten(), rank) for t in group.values()]) for group in groups]
        states = {"fp32_flat_groups": flat, "partition_count": world}
        torch.save({"optimizer_state_dict": states}, third / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    expected = {"scale": torch.ones(1), "tied": groups[0]["a"], **groups[0], **groups[1]}
    return second, third, expected | ({"f": torch.tensor([8.0, 9.0])} if frozen else {})


@pytest.mark.parametrize("frozen", [False, True])
def test_deepspeed_folders(tmp_path, frozen):
    *folders, expected = deepspeed_folder(tmp_path, frozen)
    for folder in folders:
        found = load_training_checkpoint(folder)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_more_than_ten_processes_keep_their_order(tmp_path):
    (tmp_path / "a.pth").mkdir()
    state = {"buffer_names": [], "shared_params": {}, "module": {}, "frozen_param_shapes": None}
    state["param_shapes"] = [OrderedDict(a=torch.Size([12]))]
    torch.save(state, tmp_path / "a.pth" / "mp_rank_00_model_states.pt")
    for rank in range(12):
        states = {"single_partition_of_fp32_groups": [torch.tensor([float(rank)])], "partition_count": 12}
        path = tmp_path / "a.pth" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": states}, path)
    assert torch.equal(load_training_checkpoint(tmp_path / "a.pth")["a"], torch.arange(12.0))


def test_missing_shard(tmp_path):
    folder, _, _ = deepspeed_folder(tmp_path, False)
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="written by 3 processes but has 2 files"):
        load_training_checkpoint(folder)


def test_without_optimizer_states_the_stored_weights_are_taken(tmp_path):
    (tmp_path / "a.pth").mkdir()
    state = {"buffer_names": [], "shared_params": {}, "module": dict(WEIGHTS)}
    torch.save(state, tmp_path / "a.pth" / "mp_rank_00_model_states.pt")
    check(load_training_checkpoint(tmp_path / "a.pth"))
    state["module"] = {"a": torch.empty(0)}
    torch.save(state, tmp_path / "a.pth" / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="ZeRO-3 checkpoint without"):
        load_training_checkpoint(tmp_path / "a.pth")


def test_missing_path_names_what_is_there(tmp_path):
    torch.save(WEIGHTS, tmp_path / "iter_5.pth")
    with pytest.raises(FileNotFoundError, match=r"iter_50.pth does not exist. .* has: iter_5.pth"):
        load_training_checkpoint(tmp_path / "iter_50.pth")


def make_hugging_face_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text("")


def make_work_dir(path):
    path.mkdir()
    (path / "last_checkpoint").write_text("/some/iter_7.pth")


def make_work_dir_without_note(path):
    path.mkdir()
    (path / "iter_7.pth").write_text("")


def make_truncated(path):
    torch.save(mmengine_checkpoint(), path)
    path.write_bytes(path.read_bytes()[:1000])


def make_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def make_shard(path):
    torch.save({"buffer_names": [], "module": {}}, path)


def make_truncated_safetensors(path):
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("hf", make_hugging_face_folder, "a model folder in Hugging Face format"),
        ("work", make_work_dir_without_note, "Give one of its checkpoints: iter_7.pth"),
        ("empty", lambda path: path.mkdir(), r"a folder without a checkpoint \(it is empty\)"),
        ("cut.pth", make_truncated, "truncated or another kind of file"),
        ("none.pth", lambda path: path.write_bytes(b""), "truncated or another kind of file"),
        ("text.pth", lambda path: path.write_text("hello"), "truncated or another kind of file"),
        ("pointer.pth", make_pointer, "Git LFS pointer"),
        ("pointer.safetensors", make_pointer, "Git LFS pointer"),
        ("cut.safetensors", make_truncated_safetensors, "truncated or another kind of file"),
        ("shard.pt", make_shard, "one shard of a DeepSpeed checkpoint. Give the folder"),
        ("list.pth", lambda path: torch.save([1, 2], path), "holds no state dict but <class 'list'>"),
        ("other.pth", lambda path: torch.save({"epoch": 3}, path), r"holds no state dict but .*\['epoch'\]"),
        ("pickle.pth", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "truncated or another kind of file"),
    ],
)
def test_wrong_kinds_are_told_apart(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load_training_checkpoint(tmp_path / name)


def test_work_directory_stands_for_its_newest_checkpoint(tmp_path):
    make_work_dir(tmp_path / "work")
    with pytest.raises(FileNotFoundError, match=r"/some/iter_7\.pth does not exist"):
        load_training_checkpoint(tmp_path / "work")
    torch.save({"state_dict": WEIGHTS}, tmp_path / "work" / "iter_7.pth")  # also where the folder was moved
    assert set(load_training_checkpoint(tmp_path / "work")) == set(WEIGHTS)


@pytest.mark.parametrize(
    "content", [b"", b" \n", b".", b"..", b"/", b"\xff\xfe", b"iter_9.pth\niter_7.pth", b"a" * 5000]
)
def test_damaged_notes_lead_nowhere(tmp_path, content):
    """Neither to the folder of the process nor to one above, whatever checkpoints are there."""
    work = tmp_path / "above" / "work"
    work.mkdir(parents=True)
    torch.save({"state_dict": WEIGHTS}, work.parent / "iter_9.pth")
    (work / "last_checkpoint").write_bytes(content)
    with pytest.raises((CheckpointError, OSError)):
        load_training_checkpoint(work)
