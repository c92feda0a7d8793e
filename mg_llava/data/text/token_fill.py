"""Filling a token cache before a run."""

from collections.abc import Callable, Sequence

import numpy as np

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError
from mg_llava.work.pool import run_batches

_BATCH = 256


def fill_token_cache(source: LLaVADataset, workers: int = 0, progress: Callable[[int], object] | None = None) -> int:
    """Tokenize all texts of a source before a run, which then groups samples by their exact lengths.

    What is in the cache is not tokenized again, so that a fill that was interrupted goes on.

    Args:
        source: A source with a ``token_cache``.
        workers: Processes that tokenize; 0 for this one.
        progress: Gets the number of records after each batch.

    Returns:
        The number of records.

    Raises:
        ValueError: The source has no cache.
    """
    if source.token_cache is None:
        raise ValueError(f"{source.data_path} has no token cache; set caches=dict(token_cache=FOLDER)")
    rows, indices = np.unique([source.row(index) for index in range(len(source))], return_index=True)
    batches = run_batches(_lengths, source, indices.tolist(), _BATCH, workers, progress)
    source.token_cache.keep_lengths(rows, np.concatenate(list(batches)))
    return len(rows)


def _lengths(source: LLaVADataset, indices: Sequence[int]) -> np.ndarray:
    """(n,) int64 number of ids of samples, 0 for those without a label."""
    lengths = np.zeros(len(indices), dtype=np.int64)
    for place, index in enumerate(indices):
        try:
            lengths[place] = len(source.encode(index).input_ids)
        except (NoLabelError, BudgetError):
            continue
    return lengths
