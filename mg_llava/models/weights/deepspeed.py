"""Reads the folder DeepSpeed writes (ZeRO 1, 2 or 3), one tensor at a time; DeepSpeed need not be installed.

The full-precision weights lie in the optimizer's shards, one file a process. A tensor is put together from its pieces
when it is read; the files are mapped, so no more than one tensor is in memory.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mg_llava.models.weights.archive import EXPECTED, CheckpointError, read_archive
from mg_llava.models.weights.stored import StoredTensor, TensorMap, map_state_dict

MODEL_STATES = "*_model_states.pt"
OPTIMIZER_STATES = "*_optim_states.pt"


def map_deepspeed_folder(folder: Path) -> tuple[TensorMap, dict[str, Any]]:
    """Weights of a DeepSpeed folder and what else its first model file holds.

    Returns:
        The tensors, in float32 where the optimizer's copy is there; and the other entries with ``"zero_stage"`` (0
        where only weights in training precision were kept).

    Raises:
        CheckpointError: If files are absent, damaged, or do not belong together.
    """
    models = [_load(file, "module") for file in _by_rank(folder.glob(MODEL_STATES))]
    optimizers = [
        _load(file, "optimizer_state_dict")["optimizer_state_dict"] for file in _by_rank(folder.glob(OPTIMIZER_STATES))
    ]
    first = models[0]
    stage = 0
    weights = {
        name: StoredTensor.of(first["module"][name]) for name in first["buffer_names"] if name in first["module"]
    }
    if not optimizers:
        weights.update(_stored_weights(folder, first))
    else:
        _check_shard_count(folder, optimizers)
        weights.update(_frozen_weights(models))
        partitioned = "fp32_flat_groups" in optimizers[0]
        stage = 3 if partitioned else _stored_stage(optimizers[0])
        weights.update((_join_stage_3 if partitioned else _join_stage_1_2)(folder, first, optimizers))
    for alias, name in dict(first["shared_params"]).items():
        if name in weights:
            weights[alias] = weights[name]
    rest = {key: value for key, value in first.items() if key not in ("module", "optimizer")}
    return weights, rest | {"zero_stage": stage}


def _stored_stage(optimizer: dict[str, Any]) -> int:
    """1 or 2, whose folders are alike; DeepSpeed stores a number, or a member of an enumeration by number or name."""
    stage = optimizer.get("zero_stage")
    if getattr(stage, "name", None) == "optimizer_states":
        return 1
    number = getattr(stage, "number", stage)
    return number if isinstance(number, int) else 2


def _load(file: Path, needed: str) -> dict[str, Any]:
    content = read_archive(file)
    if not isinstance(content, dict) or needed not in content:
        raise CheckpointError(f"{file} has no {needed!r}, so DeepSpeed did not write it. {EXPECTED}")
    return content


def _by_rank(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def _check_shard_count(folder: Path, optimizers: list[dict]) -> None:
    count = optimizers[0]["partition_count"]
    wanted = max(count) if isinstance(count, list) else count
    if wanted != len(optimizers):
        raise CheckpointError(
            f"{folder} was written by {wanted} processes but has {len(optimizers)} files {OPTIMIZER_STATES}. "
            "Copy the files of every node into this folder."
        )


def _stored_weights(folder: Path, model: dict) -> TensorMap:
    """Take the weights in training precision, when the optimizer's full-precision copy was not kept."""
    if any(tensor.numel() == 0 for tensor in model["module"].values()):
        raise CheckpointError(f"{folder} is a ZeRO-3 checkpoint without {OPTIMIZER_STATES}, which hold its weights.")
    return map_state_dict(model["module"])


def _frozen_weights(models: list[dict]) -> TensorMap:
    """Frozen parameters, where they were saved: whole in ZeRO 1 and 2, one fragment per rank in ZeRO 3."""
    frozen: TensorMap = {}
    for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
        fragments = [model["frozen_param_fragments"][name].flatten() for model in models]
        frozen[name] = StoredTensor(tuple(shape), fragments[0].dtype, partial(_join, [fragments], 0, None, shape))
    return frozen


def _join_stage_1_2(folder: Path, model: dict, optimizers: list[dict]) -> TensorMap:
    """Each rank holds one slice of every parameter group's flat vector."""
    weights: TensorMap = {}
    for index, shapes in enumerate(model["param_shapes"]):
        flat = [optimizer["single_partition_of_fp32_groups"][index] for optimizer in optimizers]
        offset = 0
        for name, shape in shapes.items():
            read = partial(_join, [flat], offset, shape.numel(), shape)
            weights[name] = StoredTensor(tuple(shape), flat[0].dtype, read)
            offset += shape.numel()
        _check_length(folder, flat, offset)
    return weights


def _join_stage_3(folder: Path, model: dict, optimizers: list[dict]) -> TensorMap:
    """Each rank holds one slice of every parameter, padded to the same length."""
    ranks = [list(optimizer["fp32_flat_groups"]) for optimizer in optimizers]
    weights: TensorMap = {}
    offset = 0
    for shapes in model["param_shapes"]:
        for name, shape in shapes.items():
            length = math.ceil(shape.numel() / len(ranks))
            weights[name] = StoredTensor(tuple(shape), ranks[0][0].dtype, partial(_join, ranks, offset, length, shape))
            offset += length
    for pieces in ranks:
        _check_length(folder, pieces, offset)
    return weights


def _check_length(folder: Path, pieces: Sequence[Tensor], needed: int) -> None:
    found = sum(piece.numel() for piece in pieces)
    if found < needed:
        raise CheckpointError(
            f"{folder}: the files {OPTIMIZER_STATES} hold {found} values where {needed} are needed; they belong to "
            "another checkpoint or one of them was not written to its end."
        )


def _join(vectors: Sequence[Sequence[Tensor]], start: int, length: int | None, shape: torch.Size) -> Tensor:
    """Take values ``start`` to ``start + length`` of each vector, which lies in pieces, and put them in a row."""
    pieces = [piece for vector in vectors for piece in _take(vector, start, length)]
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return joined[: shape.numel()].view(shape)


def _take(pieces: Sequence[Tensor], start: int, length: int | None) -> list[Tensor]:
    """Values ``start`` to ``start + length`` of a vector in pieces, without copying them."""
    end = math.inf if length is None else start + length
    taken, offset = [], 0
    for piece in pieces:
        first, last = max(start - offset, 0), min(end - offset, piece.numel())
        if first < last:
            taken.append(piece[first : int(last)])
        offset += piece.numel()
    return taken or [pieces[0][:0]]
