"""From any checkpoint to any layout, tensor by tensor.

Whatever is given is first brought under the reference's names, completed (LLM and encoders from their own folders,
adapters merged), checked key by key, and only then written; nothing is left at the target when something fails.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from mg_llava import __version__
from mg_llava.conversion.files import MANIFEST, ConversionError, check_room, write_json
from mg_llava.conversion.folder_writing import SMALL_FILES, manifest, stage, without_ties, write_shards
from mg_llava.conversion.hugging_face import write_hugging_face
from mg_llava.conversion.inputs import LLM_FOLDER, PROJECT_KEY, VISION_FILE
from mg_llava.conversion.prepare import prepare
from mg_llava.conversion.report import KeyReport
from mg_llava.conversion.types import Options, Source
from mg_llava.conversion.writers import Progress, total_bytes, write_pth, write_safetensors
from mg_llava.models.weights.folders import read_config
from mg_llava.models.weights.stored import TensorMap

Target = Literal["hf", "parts", "reference", "mmengine"]
TARGETS: dict[str, str] = {
    "hf": "Hugging Face folder of the whole model: safetensors, config, processor",
    "parts": f"folder with the merged LLM in {LLM_FOLDER}/ and {VISION_FILE}",
    "reference": "one .pth file in the layout of the published weights",
    "mmengine": "one .pth file as `xtuner train` writes it, without optimizer",
}


def convert(
    source: str | Path,
    target: str | Path,
    to: Target,
    options: Options | None = None,
    progress: Progress | None = None,
) -> KeyReport:
    """Convert a checkpoint.

    Args:
        source: Checkpoint of any kind.
        target: File or folder to write.
        to: One of :data:`TARGETS`.
        options: How.
        progress: Called after each tensor with its name and size.

    Returns:
        The report on the keys, which has no problems.

    Raises:
        FileNotFoundError: If nothing is at a path.
        ConversionError: If the source is incomplete, its parts do not fit together, or the target cannot be written;
            what was at the target is unchanged.
        CheckpointError: If a source is damaged or of another kind.
    """
    options = options or Options()
    if to not in TARGETS:
        raise ConversionError(f"unknown target {to!r}; known: {', '.join(TARGETS)}")
    name = Path(target).resolve().name
    if to == "hf" and options.standalone and "." in name:
        raise ConversionError(
            f"{target}: transformers cannot import code from a folder with a dot in its name; write to "
            f"{name.replace('.', '_')!r}, or leave out --standalone"
        )
    prepared = prepare(source, options, whole=to in ("hf", "parts"))
    write(prepared, Path(target), to, options, progress)
    return prepared.report


def write(prepared: Source, target: Path, to: Target, options: Options, progress: Progress | None = None) -> None:
    """Write what is complete and checked; arguments and errors as for :func:`convert`."""
    if to in ("reference", "mmengine"):
        _write_pth(prepared, target, to, options, progress)
    elif to == "parts":
        _write_parts(prepared, target, options, progress)
    else:
        write_hugging_face(prepared, target, options, progress)


def _write_pth(source: Source, target: Path, to: str, options: Options, progress: Progress | None) -> None:
    if target.is_dir():
        raise ConversionError(f"{target} is a folder; give the name of a .pth file")
    if target.exists() and not options.overwrite:
        raise ConversionError(f"{target} exists; give another name, or --overwrite")
    tensors = dict(source.tensors)
    for alias, name in source.tied.items():  # a Hugging Face folder stores tied weights once
        if f"llm.{name}" in tensors:
            tensors.setdefault(f"llm.{alias}", tensors[f"llm.{name}"])
    check_room(target.parent, total_bytes({id(t): t for t in tensors.values()}.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    extra: dict[str, Any] = {}
    if to == "mmengine":
        meta = {"epoch": 0, "iter": 0} | source.checkpoint.meta | {PROJECT_KEY: __version__}
        extra = {"meta": meta | {"converted_from": source.checkpoint.kind}}
    write_pth(target, tensors, extra, progress)


def _write_parts(source: Source, target: Path, options: Options, progress: Progress | None) -> None:
    assert source.llm_folder is not None
    vision = {key: tensor for key, tensor in source.tensors.items() if not key.startswith("llm.")}
    llm = without_ties(
        {key.removeprefix("llm."): t for key, t in source.tensors.items() if key.startswith("llm.")}, source.tied
    )
    staged = stage(source, target, "parts", options, {**vision, **llm})
    metadata = {"layout": "mg_llava vision part"}
    staged.write(VISION_FILE, lambda path: write_safetensors(path, vision, metadata, progress))
    (staged.path / LLM_FOLDER).mkdir(exist_ok=True)
    write_shards(staged, llm, options, progress, folder=f"{LLM_FOLDER}/")
    copy_llm_files(source.llm_folder, staged.path / LLM_FOLDER)
    _note_dtype(staged.path / LLM_FOLDER / "config.json", llm)
    staged.finish(manifest(source, "parts"))


_OF_THE_WHOLE = {"config.json", "chat_template.json", "processor_config.json", "preprocessor_config.json"}


def copy_llm_files(source: Path, target: Path) -> None:
    """Copy what lies beside an LLM's weights: configuration, tokenizer, license.

    Args:
        source: The LLM's folder, or a folder of the whole model, whose LLM's configuration is taken out.
        target: Folder to copy to.
    """
    config = read_config(source)
    whole = config.get("model_type") == "mg_llava"
    skip = {MANIFEST} | (_OF_THE_WHOLE if whole else set())
    for file in (file for pattern in SMALL_FILES for file in source.glob(pattern)):
        unwanted = file.name.endswith(".index.json") or (whole and file.suffix == ".py") or file.name in skip
        if file.is_file() and not unwanted:
            shutil.copyfile(file, target / file.name)
    if whole:
        write_json(target / "config.json", config["text_config"])


def _note_dtype(file: Path, tensors: TensorMap) -> None:
    """Say in a configuration which dtype the weights have now."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point}
    if len(dtypes) == 1:
        config = json.loads(file.read_text())
        write_json(file, config | {"torch_dtype": str(dtypes.pop()).removeprefix("torch.")})
