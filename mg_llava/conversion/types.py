"""How to convert, what has been opened, and what is going to be written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mg_llava.conversion.adapters import Adapter
from mg_llava.conversion.settings import ModelSettings
from mg_llava.models.weights.loading import resolve_dtype
from mg_llava.models.weights.report import KeyReport
from mg_llava.models.weights.stored import TensorMap


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert.

    Args:
        config: Training config; without it the one stored in the checkpoint is taken.
        add: Further checkpoints with parts that the first lacks, e.g. a PEFT folder.
        llm: Folder of the LLM; by default the config's.
        lora: Arguments of ``peft.LoraConfig`` that differ from the config's, e.g. ``lora_alpha``.
        dtype: Dtype of all weights; None keeps each tensor's own.
        max_shard_size: Largest file of weights in folders.
        merge: Merge adapters also into ``.pth`` files; folders have them merged in any case.
        standalone: Put the source files the model needs into the Hugging Face folder.
        overwrite: Replace what an earlier conversion left at the target.
        verify: Compare all checksums of the source first.
    """

    config: str | Path | None = None
    add: Sequence[str | Path] = ()
    llm: str | Path | None = None
    lora: Mapping[str, Any] | None = None
    dtype: str | None = None
    max_shard_size: str | int = "4GB"
    merge: bool = False
    standalone: bool = False
    overwrite: bool = False
    verify: bool = False

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype, None to keep each tensor's own."""
        return None if self.dtype in (None, "keep") else resolve_dtype(str(self.dtype))


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whatever its kind; nothing of its tensors has been read.

    Args:
        path: Where it is.
        kind: What was found, in words.
        tensors: Connectors, trained encoders and the LLM under the reference's names.
        adapter: Adapters on the LLM.
        encoders: Other encoders under the model's names; only in a Hugging Face folder of the whole model.
        unknown: Keys of no part.
        ignored: Keys that are known to be of no use.
        meta: What mmengine stored of the run: plain values alone.
        settings: Of its training, as far as they are known.
        llm_folder: Where the configuration and tokenizer of the LLM lie, if they come with the checkpoint.
    """

    path: Path
    kind: str
    tensors: TensorMap
    adapter: Adapter | None = None
    encoders: TensorMap = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    settings: ModelSettings | None = None
    llm_folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"

    @property
    def files(self) -> list[Path]:
        """All files that it consists of."""
        return [self.path] if self.path.is_file() else sorted(file for file in self.path.rglob("*") if file.is_file())

    @property
    def model(self) -> Mapping[str, Any] | None:
        """The config of its system, as far as it is known."""
        return self.settings.model if self.settings else None

    @property
    def has_llm(self) -> bool:
        """True where it holds weights of the LLM, be it only some that were trained beside adapters."""
        return any(key.startswith("llm.") for key in self.tensors)


@dataclass(frozen=True)
class SourceCheckpoint:
    """A checkpoint, completed and checked, as it is going to be written.

    Args:
        checkpoint: The checkpoint.
        tensors: Its parts, complete, under the reference's names.
        llm_folder: The LLM's folder.
        report: On the keys.
        tied: Further names of tied weights of the LLM, with the names that they stand for; without ``llm.``.
        files: What it was read from; none where it was in memory.
    """

    checkpoint: Checkpoint
    tensors: TensorMap
    llm_folder: Path | None
    report: KeyReport
    tied: Mapping[str, str]
    files: Sequence[Path] = ()

    def split(self) -> tuple[TensorMap, TensorMap]:
        """The connectors with trained encoders, and the LLM without ``llm.``."""
        llm = {key.removeprefix("llm."): tensor for key, tensor in self.tensors.items() if key.startswith("llm.")}
        return {key: tensor for key, tensor in self.tensors.items() if not key.startswith("llm.")}, llm
