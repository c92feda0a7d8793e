"""Everything of a Hugging Face folder but the weights, from a training config."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mg_llava.hf.architecture import build_processor, describe_generation, describe_model
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.model_card import model_card
from mg_llava.hf.standalone import auto_map, copy_sources
from mg_llava.models.weights.loading import resolve_dtype
from mg_llava.registry import MODELS, TRANSFORMS
from mg_llava.tokens import tokens_without_embeddings


def folder_files(
    config: Mapping[str, Any], folder: str | Path, dtype: str | torch.dtype = "bfloat16", standalone: bool = False
) -> list[str]:
    """Write ``config.json``, ``generation_config.json``, the processor's files and ``README.md``.

    The weights go beside them under the names of :func:`mg_llava.hf.keys.hf_key`: all of the model, both encoders
    included, in safetensors files with the metadata ``format: pt``. Of tied weights the first is enough.

    Args:
        config: A training config with ``model``, ``tokenizer``, ``prompt_template`` and ``picture_processor``.
        folder: The folder; made where it does not exist. Files in it are replaced when all new ones are there.
        dtype: Dtype of the weights, which is what ``torch_dtype="auto"`` loads them in.
        standalone: Copy the code as well, so that the folder loads without this package (``trust_remote_code=True``).

    Returns:
        Names of the files, sorted.

    Raises:
        FileNotFoundError: A folder that the config names, or a file of it, is absent.
        ValueError: The config lacks something, a part is of a kind that a folder cannot describe, or the tokenizer has
            tokens that the LLM has no word embeddings for.
    """
    needed = ("model", "tokenizer", "prompt_template", "picture_processor")
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise ValueError(f"config lacks {', '.join(missing)}; a training config of this project has them all")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = describe_model(config, resolve_dtype(dtype))
    processor = build_processor(config)
    if problem := tokens_without_embeddings(processor.tokenizer, described.vocab_size):
        raise ValueError(problem)
    if standalone:
        described.auto_map = auto_map(
            "AutoConfig", "AutoModel", "AutoModelForVision2Seq", "AutoModelForImageTextToText"
        )
        processor.auto_map = auto_map("AutoProcessor")
        processor.image_processor.auto_map = auto_map("AutoImageProcessor", "AutoProcessor")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        staging = Path(name)
        described.save_pretrained(staging)
        describe_generation(config, processor.tokenizer).save_pretrained(staging)
        processor.save_pretrained(staging)
        (staging / "README.md").write_text(model_card(config, described, standalone, bool(processor.parts)))
        if standalone:
            kinds = [TRANSFORMS.get(part["type"]) for part in processor.parts]
            copy_sources(staging, _modules(described), {kind.__module__ for kind in kinds})
        names = sorted(file.name for file in staging.iterdir() if file.is_file())
        for file in names:
            shutil.move(staging / file, folder / file)
    return names


def _modules(described: MGLLaVAConfig) -> set[str]:
    """Modules that register the system and its parts."""
    kinds = [described.system, *(part["type"] for part in described.parts.values())]
    return {MODELS.get(kind).__module__ for kind in kinds}
