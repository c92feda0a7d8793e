"""Token ids on disk, so that a text is tokenized once: append-only, for any number of workers, safe with a kill.

A folder is for one tokenizer, template, set of limits and record file; the name of the folder is a hash of them all.
What is read is what was put: results do not depend on the cache. See ``work.blobs`` for the files.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from mmengine.logging import print_log

from mg_llava.data.records.schema import SCHEMA_VERSION
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import ENCODING_VERSION, EncodedConversation, Template
from mg_llava.tokens import IGNORE_INDEX
from mg_llava.work.arrays import load_arrays, save_arrays
from mg_llava.work.blobs import BlobReader, BlobWriter

_VERSION = 2
_SUFFIX = ".ids"
_LENGTHS = "lengths.npz"


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
        self._blobs = BlobReader(self.folder, _SUFFIX)
        # By row: its newest entry; -1 for none.
        self._places = np.full(rows, -1, dtype=np.int64)
        keys = self._blobs.entries["key"]
        inside = np.flatnonzero(keys < rows)
        self._places[keys[inside].astype(np.int64)] = inside
        # Rows in the cache, for all workers of this process.
        self._known = torch.from_numpy(self._places >= 0).share_memory_()
        self._writer: tuple[int, BlobWriter] | None = None
        self._broken = False

    def __len__(self) -> int:
        """Number of records in the cache, those that workers of this process added included."""
        return int(self._known.sum())

    def get(self, row: int) -> EncodedConversation | None:
        """What was put for a row before this start, if it is whole."""
        place = int(self._places[row])
        content = None if place < 0 else self._blobs.read(place)
        if content is not None:
            return _decode(content)
        if place >= 0:  # damaged: it is put once more
            self._places[row], self._known[row] = -1, False
        return None

    def put(self, row: int, encoded: EncodedConversation) -> None:
        """Add a row, unless it is there; a full or read-only disk costs the cache alone."""
        if self._known[row] or self._broken:
            return
        try:
            if self._writer is None or self._writer[0] != os.getpid():
                self._writer = os.getpid(), BlobWriter(self.folder, _SUFFIX)
            self._writer[1].add(row, _encode(encoded))
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
        merged = np.full(len(self._places), -1, dtype=np.int32) if known is None else known
        merged[rows] = lengths
        save_arrays(self.folder / _LENGTHS, lengths=merged)

    def _lengths(self) -> np.ndarray | None:
        lengths = (load_arrays(self.folder / _LENGTHS) or {}).get("lengths")
        return lengths if lengths is not None and lengths.shape == self._places.shape else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_writer": None}


def cache_key(tokenizer: Any, template: Template, budget: TokenBudget, data: str) -> str:
    """Short hash of all that the ids of a record file with the fingerprint ``data`` depend on.

    The tokenizer's vocabulary, rules and special tokens count; the budget decides about truncation.
    """
    digest = hashlib.blake2b(digest_size=16)
    limits = [budget.context_length, budget.max_length, budget.tokens(1, 0)]
    if budget.of_frames != budget:
        limits.append(budget.of_frames.tokens(1, 0))
    for part in (
        _VERSION,
        SCHEMA_VERSION,
        ENCODING_VERSION,
        tokenizer_fingerprint(tokenizer),
        template,
        tuple(limits),
        data,
    ):
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


def _encode(encoded: EncodedConversation) -> np.ndarray:
    """(5 n + 1,) uint8: n ids of four bytes, n bytes that say whether they carry loss, and one for all."""
    ids = np.array(encoded.input_ids, dtype="<i4")
    carries_loss = np.array(encoded.labels, dtype="<i4") != IGNORE_INDEX
    return np.concatenate([ids.view(np.uint8), carries_loss.astype(np.uint8), [encoded.truncated]]).astype(np.uint8)


def _decode(content: np.ndarray) -> EncodedConversation:
    count = len(content) // 5
    ids = content[: 4 * count].view("<i4")
    labels = np.where(content[4 * count : 5 * count] != 0, ids, IGNORE_INDEX)
    return EncodedConversation(ids.tolist(), labels.tolist(), bool(content[-1]))
