"""Parts of all folders: shards with an index and files of the source, written into a staged folder."""

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from mg_llava import __version__
from mg_llava.conversion.expected import parts_of
from mg_llava.conversion.files import MANIFEST, ConversionError, StagedFolder, check_room
from mg_llava.conversion.types import ConversionOptions, SourceCheckpoint
from mg_llava.conversion.writers import TensorProgress, write_safetensors
from mg_llava.models.weights.stored import TensorMap
from mg_llava.work.atomic import write_json

_INDEX = "model.safetensors.index.json"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*", "*.md")


def parse_size(text: str | int) -> int:
    """Bytes of ``"5GB"``, ``"200MB"`` or a plain number.

    Raises:
        ConversionError: It is no size.
    """
    if isinstance(text, int):
        return text
    number = text.strip().upper()
    unit = next((unit for unit in _UNITS if number.endswith(unit)), "")
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConversionError(f"{text!r} is no size of a shard; write for example 4GB or 500MB")
    return size


def plan_shards(tensors: TensorMap, max_bytes: int) -> dict[str, list[str]]:
    """Names of tensors, in their order, by files of at most ``max_bytes``, or one tensor where that is larger."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def write_shards(
    staged: StagedFolder,
    tensors: TensorMap,
    options: ConversionOptions,
    progress: TensorProgress | None,
    folder: str = "",
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
        weight_map = dict(sorted((name, file) for file, names in shards.items() for name in names))
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(staged.path / folder / _INDEX, index, indent=2)


def without_ties(llm: TensorMap, tied: Mapping[str, str]) -> TensorMap:
    """Leave out the further names of tied weights, as Hugging Face folders do."""
    return {name: tensor for name, tensor in llm.items() if not (name in tied and tied[name] in llm)}


def stage(
    source: SourceCheckpoint, target: Path, to: str, options: ConversionOptions, tensors: TensorMap
) -> StagedFolder:
    """Begin a folder that will hold ``tensors``; see :class:`StagedFolder`."""
    plan = {
        "to": to,
        "version": __version__,
        "options": {key: str(value) for key, value in vars(options).items() if key not in ("overwrite", "verify")},
        "files": [
            [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns]
            for file in (*source.files, *_named_files(source))
        ],
        "settings": repr(source.checkpoint.settings),
        # tensors in memory are identified by nothing
        "once": "" if source.files else uuid.uuid4().hex,
    }
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    staged = StagedFolder(target, fingerprint, options.overwrite)
    there = sum(file.stat().st_size for file in staged.path.rglob("*") if file.is_file())
    check_room(staged.path, max(0, sum(tensor.nbytes for tensor in tensors.values()) - there))
    return staged


def _named_files(source: SourceCheckpoint) -> list[Path]:
    """Files of the folders that a config names, which weights may be taken from."""
    model = source.checkpoint.model or {}
    paths = [(model.get(part.config) or {}).get("path") for part in parts_of(model or None) if part.role == "encoder"]
    folders = [Path(path) for path in (source.llm_folder, *paths) if path is not None]
    return sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())


def finish(staged: StagedFolder, source: SourceCheckpoint, layout: str) -> None:
    """Put a complete folder in its place, with a manifest that says what it was made from."""
    meta = {key: value for key, value in source.checkpoint.meta.items() if key in ("epoch", "iter", "seed")}
    staged.finish(
        {
            "layout": layout,
            "mg_llava": __version__,
            "source": {"name": source.checkpoint.path.name, "kind": source.checkpoint.kind, **meta},
            "parts": source.report.parts,
        }
    )


def copy_small_files(source: Path, target: Path, leave_out: Collection[str] = ()) -> None:
    """Copy what lies beside a folder's weights: configuration, tokenizer, code, license.

    Args:
        source: The folder.
        target: Folder to copy to.
        leave_out: Names and suffixes of files that are not copied.
    """
    for file in (file for pattern in _SMALL_FILES for file in source.glob(pattern)):
        unwanted = file.name.endswith(".index.json") or not {file.name, file.suffix}.isdisjoint((MANIFEST, *leave_out))
        if file.is_file() and not unwanted:
            shutil.copyfile(file, target / file.name)


def main_dtype(llm: TensorMap) -> str:
    """Dtype of most of an LLM, in which ``torch_dtype="auto"`` loads all weights."""
    sizes: Counter[str] = Counter()
    for tensor in llm.values():
        if tensor.dtype.is_floating_point:
            sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return sizes.most_common(1)[0][0]
