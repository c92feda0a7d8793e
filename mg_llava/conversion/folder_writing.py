"""What all folders have in common: shards with an index, written into a staged folder, and a manifest."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_llava import __version__
from mg_llava.conversion.expected import parts_of
from mg_llava.conversion.files import StagedFolder, check_room, write_json
from mg_llava.conversion.types import Options, Source
from mg_llava.conversion.writers import (
    INDEX,
    Progress,
    parse_size,
    plan_shards,
    shard_index,
    total_bytes,
    write_safetensors,
)
from mg_llava.models.weights.stored import TensorMap

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
"""What of a folder is copied beside the weights."""


def without_ties(llm: TensorMap, tied: Mapping[str, str]) -> TensorMap:
    """Leave out the further names of tied weights, as Hugging Face folders do."""
    return {name: tensor for name, tensor in llm.items() if not (name in tied and tied[name] in llm)}


def stage(source: Source, target: Path, to: str, options: Options, tensors: TensorMap) -> StagedFolder:
    """Begin a folder that will hold ``tensors``; see :class:`StagedFolder`."""
    plan = {
        "to": to,
        "version": __version__,
        "options": {key: str(value) for key, value in vars(options).items() if key not in ("overwrite", "verify")},
        "files": [_stamp(file) for file in (*source.files, *_named_files(source))],
        "settings": repr(source.settings),
        "adapter": repr(source.checkpoint.adapter and source.checkpoint.adapter.settings),
        "tensors": {name: [list(t.shape), str(t.dtype)] for name, t in tensors.items()},
    }
    if not source.files:  # tensors in memory, which nothing identifies
        plan["once"] = uuid.uuid4().hex
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    staged = StagedFolder(target, fingerprint, options.overwrite)
    there = sum(file.stat().st_size for file in staged.path.rglob("*") if file.is_file())
    check_room(staged.path, max(0, total_bytes(tensors.values()) - there))
    return staged


def _stamp(file: Path) -> list[Any]:
    return [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns]


def _named_files(source: Source) -> list[Path]:
    """Files of the folders that a config names, which weights may be taken from."""
    model = source.settings.model if source.settings else {}
    paths = [(model.get(part.config) or {}).get("path") for part in parts_of(model or None) if part.role == "encoder"]
    folders = [Path(path) for path in (source.llm_folder, *paths) if path is not None]
    return sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())


def write_shards(
    staged: StagedFolder, tensors: TensorMap, options: Options, progress: Progress | None, folder: str = ""
) -> None:
    """Write safetensors files of limited size with their index."""
    shards = plan_shards(tensors, parse_size(options.max_shard_size))
    for file, names in shards.items():
        shard = {name: tensors[name] for name in names}
        wrote = staged.write(folder + file, lambda path, shard=shard: write_safetensors(path, shard, None, progress))  # type: ignore[misc]
        if not wrote and progress:
            for name in names:
                progress(name, tensors[name].nbytes)
    if len(shards) > 1:
        write_json(staged.path / folder / INDEX, shard_index(shards, tensors))


def manifest(source: Source, layout: str) -> dict[str, Any]:
    """What a folder's manifest says beside its files."""
    meta = {key: value for key, value in source.checkpoint.meta.items() if key in ("epoch", "iter", "seed")}
    return {
        "layout": layout,
        "mg_llava": __version__,
        "source": {"name": source.checkpoint.path.name, "kind": source.checkpoint.kind, **meta},
        "parts": source.report.parts,
    }
