"""Token ids on disk, so that a text is tokenized once: append-only, for any number of workers, safe with a kill.

A folder is for one tokenizer, template, set of limits and record file; the name of the folder is a hash of them all.
Every process that adds something writes two files of its own: the ids of one record after the other, and fixed-size
entries that say where they lie. An entry is written after its ids and has their checksum, so that what a kill leaves
is either whole or not found. What is read is what was put: results do not depend on the cache.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers
import torch
import transformers
from mmengine.logging import print_log

from mg_llava.data.records.schema import SCHEMA_VERSION
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import ENCODING_VERSION, EncodedConversation, Template
from mg_llava.tokens import IGNORE_INDEX

_VERSION = 1
_ENTRY = np.dtype([("row", "<i8"), ("offset", "<i8"), ("count", "<i4"), ("checksum", "<u4")])
_LENGTHS = "lengths.npy"


class TokenCache:
    """Encoded conversations of one record file, by their rows.

    What other processes add is seen after the next start alone. Lengths are given once the cache was filled by
    ``fill_token_cache``, not when a run happened to see all samples, so that a run that is interrupted goes on with
    the same order of samples.

    Args:
        folder: Where caches lie; made if needed.
        key: What the ids depend on, from ``cache_key``.
        rows: Number of records in the file.
    """

    def __init__(self, folder: str | Path, key: str, rows: int) -> None:
        self.folder = Path(folder) / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: list[Path] = []
        self._open: dict[int, BinaryIO] = {}
        # By row: the shard (-1 for none) and its entry; grown together.
        self._shard = np.full(rows, -1, dtype=np.int32)
        self._entries = np.zeros(rows, dtype=_ENTRY)
        for path in sorted(self.folder.glob("*.index")):
            self._load(path)
        # Rows in the cache, for all workers of this process.
        self._known = torch.from_numpy(self._shard >= 0).share_memory_()
        self._writer: _Writer | None = None
        self._broken = False

    def __len__(self) -> int:
        """Number of records in the cache, those that workers of this process added included."""
        return int(self._known.sum())

    def get(self, row: int) -> EncodedConversation | None:
        """What was put for a row before this start, if it is whole."""
        shard = int(self._shard[row])
        if shard < 0:
            return None
        _, offset, count, checksum = self._entries[row].tolist()
        try:
            if shard not in self._open:
                self._open[shard] = open(self._shards[shard], "rb", buffering=0)
            # Leaves the file's position alone, which forked processes share.
            data = os.pread(self._open[shard].fileno(), _size(count), offset)
        except OSError:
            return None
        return _decode(data, count) if _checksum(row, data) == checksum else None

    def put(self, row: int, encoded: EncodedConversation) -> None:
        """Add a row, unless it is there; a full or read-only disk costs the cache alone."""
        if self._known[row] or self._broken:
            return
        try:
            if self._writer is None or self._writer.process != os.getpid():
                self._writer = _Writer(self.folder)
            self._writer.add(row, encoded)
            self._known[row] = True
        except OSError as error:
            self._broken = True
            print_log(f"token cache {self.folder} takes no more: {error}", logger="current", level=logging.WARNING)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Number of ids of these rows, (N,) int64; None unless the cache was filled for all of them."""
        lengths = self._lengths()
        if lengths is None or (found := lengths[rows].astype(np.int64)).min() < 0:
            return None
        return np.maximum(1, found)

    def keep_lengths(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Say how many ids rows have, 0 for those without a label; this makes the cache a filled one."""
        known = self._lengths()
        merged = np.full(len(self._shard), -1, dtype=np.int32) if known is None else known
        merged[rows] = lengths
        part = self.folder / f"{_LENGTHS}.{os.getpid()}.part"
        with part.open("wb") as file:
            np.save(file, merged)
        os.replace(part, self.folder / _LENGTHS)

    def _lengths(self) -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError):
            lengths = np.load(self.folder / _LENGTHS)
            if lengths.shape == self._shard.shape:
                return lengths
        return None

    def _load(self, path: Path) -> None:
        content = path.read_bytes()
        entries = np.frombuffer(content[: len(content) // _ENTRY.itemsize * _ENTRY.itemsize], dtype=_ENTRY)
        shard = path.with_suffix(".ids")
        size = shard.stat().st_size if shard.exists() else 0
        fits = (entries["row"] >= 0) & (entries["row"] < len(self._shard)) & (entries["count"] >= 0)
        fits &= (entries["offset"] >= 0) & (entries["offset"] + _size(entries["count"].astype(np.int64)) <= size)
        self._shard[entries["row"][fits]] = len(self._shards)
        self._entries[entries["row"][fits]] = entries[fits]
        self._shards.append(shard)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_writer": None}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()


class _Writer:
    """The two files of this process."""

    def __init__(self, folder: Path) -> None:
        self.process = os.getpid()
        name = f"{socket.gethostname()}-{self.process}-{secrets.token_hex(4)}"
        self._ids = open(folder / f"{name}.ids", "xb", buffering=0)
        self._index = open(folder / f"{name}.index", "xb", buffering=0)
        self._offset = 0

    def add(self, row: int, encoded: EncodedConversation) -> None:
        data = _encode(encoded)
        entry = np.array([(row, self._offset, len(encoded.input_ids), _checksum(row, data))], dtype=_ENTRY)
        # Counted before it is known to be written, so that what follows a failure is not misplaced.
        self._offset += len(data)
        if self._ids.write(data) != len(data) or self._index.write(entry.tobytes()) != _ENTRY.itemsize:
            raise OSError("the disk is full")

    def __del__(self) -> None:
        for name in ("_ids", "_index"):
            if name in self.__dict__:
                self.__dict__[name].close()


def cache_key(tokenizer: Any, template: Template, budget: TokenBudget, data: str) -> str:
    """Short hash of all that the ids of a record file depend on.

    Args:
        tokenizer: Its vocabulary, rules and special tokens count.
        template: The prompt template.
        budget: Decides about truncation.
        data: The fingerprint of the record file.
    """
    digest = hashlib.blake2b(digest_size=16)
    limits = budget.context_length, budget.max_length, budget.tokens(1, 0)
    for part in (_VERSION, SCHEMA_VERSION, ENCODING_VERSION, tokenizer_fingerprint(tokenizer), template, limits, data):
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Short hash of what a tokenizer does, and of the versions of the libraries that do it."""
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "versions": (tokenizers.__version__, transformers.__version__),
        "special": tokenizer.special_tokens_map,
        "ends": (tokenizer.bos_token_id, tokenizer.eos_token_id),
        "added": {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "settings": {key: repr(value) for key, value in tokenizer.init_kwargs.items() if "file" not in key},
        "vocabulary": tokenizer.get_vocab(),
    }
    for name in ("name_or_path", "special_tokens_map", "added_tokens_decoder"):
        about["settings"].pop(name, None)
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=repr).encode(), digest_size=16)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    if getattr(tokenizer, "sp_model", None) is not None:
        digest.update(tokenizer.sp_model.serialized_model_proto())
    return digest.hexdigest()


def _size(count: Any) -> Any:
    """Bytes of ``count`` ids: four each, one that says whether it carries loss, and one for all."""
    return 5 * count + 1


def _encode(encoded: EncodedConversation) -> bytes:
    ids = np.array(encoded.input_ids, dtype="<i4")
    carries_loss = np.array(encoded.labels, dtype="<i4") != IGNORE_INDEX
    return ids.tobytes() + carries_loss.astype(np.uint8).tobytes() + bytes([encoded.truncated])


def _decode(data: bytes, count: int) -> EncodedConversation:
    ids = np.frombuffer(data, dtype="<i4", count=count)
    carries_loss = np.frombuffer(data, dtype=np.uint8, offset=4 * count, count=count) != 0
    labels = np.where(carries_loss, ids, IGNORE_INDEX)
    return EncodedConversation(ids.tolist(), labels.tolist(), bool(data[-1]))


def _checksum(row: int, data: bytes) -> int:
    return zlib.crc32(data, row & 0xFFFFFFFF)
