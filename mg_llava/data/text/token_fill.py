"""Filling a token cache before a run."""

from collections.abc import Callable

import numpy as np

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError
from mg_llava.work.pool import run_jobs, split

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
    tasks = [indices[start:stop].tolist() for start, stop in split(len(indices), _BATCH)]
    lengths: list[int] = []
    for batch in run_jobs(_lengths, tasks, source, workers):
        lengths += batch
        if progress is not None:
            progress(len(batch))
    source.token_cache.keep_lengths(rows, np.array(lengths))
    return len(rows)


def _lengths(source: LLaVADataset, indices: list[int]) -> list[int]:
    """Number of ids of samples, 0 for those without a label."""
    return [_length(source, index) for index in indices]


def _length(source: LLaVADataset, index: int) -> int:
    try:
        return len(source.encode(index).input_ids)
    except (NoLabelError, BudgetError):
        return 0
