"""Long work in batches that goes on where it was stopped: a journal has the result of each batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mg_llava.work.journal import Journal, Record, read_journal, read_record
from mg_llava.work.pool import Pool, split

_Item = TypeVar("_Item")


def run_resumed(
    function: Callable[[Any, Sequence[_Item]], Any],
    shared: Any,
    items: Sequence[_Item],
    size: int,
    workers: int,
    journal: str | Path,
    about: Any,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Any]:
    """The results of ``function(shared, batch)`` for batches of items, in order, whatever the number of processes.

    Args:
        function: Of a module; what it gives fits into JSON.
        shared: See :class:`mg_llava.work.pool.Pool`.
        items: All of the work.
        size: Items of a batch.
        workers: Number of processes.
        journal: File that keeps the results. Those of a run about something else are thrown away.
        about: All that results depend on; it fits into JSON.
        progress: Called with the number of items done and of all.
    """
    head, *records = [*read_journal(journal)] or (None,)
    known: dict[int, Record] = {}
    is_ours = head is not None and head.value == about
    if is_ours:
        known = {record.value[0]: record for record in records}
    else:
        Path(journal).unlink(missing_ok=True)
    batches = split(len(items), size)
    missing = [items[start:stop] for start, stop in batches if start not in known]
    with Journal(journal) as file, Pool(shared, workers) as pool:
        if not is_ours:
            file.append([about])
        fresh = pool.run(function, missing)
        for start, stop in batches:
            if start in known:
                result = read_record(known[start])[1]
            else:
                result = next(fresh)
                file.append([[start, result]])
            yield result
            if progress is not None:
                progress(stop, len(items))
