"""A step of a run: numbered items, in lines of results, in tasks that processes claim."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mg_llava.detection.run.queue import Claim, WorkQueue
from mg_llava.detection.run.shards import Line, ShardWriter, read_shard, read_shards
from mg_llava.work.prefetch import prefetched

Progress = Callable[[int, int], object]
"""Called with the number of items that are done in all processes, and of all."""

_AHEAD = 3


class _Batch(NamedTuple):
    """The items of a line of results, in a claimed task."""

    claim: Claim
    line: int
    items: range
    is_last: bool


class Step:
    """Items ``0 .. count - 1``, whose results are lines ``{"line": number, "results": [...]}``.

    Which items form a line is fixed, so that results do not depend on who makes them.

    Args:
        folder: Folder of the queue and the results.
        count: Number of items.
        per_line: Items of a line.
        lines: Lines of a task.
        stale_after: See ``WorkQueue``.
    """

    def __init__(self, folder: str | Path, count: int, per_line: int, lines: int = 1, stale_after: float = 300.0):
        self.folder = Path(folder)
        self.count, self.per_line, self.lines, self.stale_after = count, per_line, lines, stale_after
        self.line_count = -(-count // per_line)

    def run(
        self,
        group: Callable[[range], Sequence[Any]],
        load: Callable[[Any], Any],
        work: Callable[[list[Any]], list[Any]],
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Work together with the other processes until all results are on disk.

        Args:
            group: What is loaded for the items of a line.
            load: Loads one of these, in a thread, ahead of time.
            work: Makes the results of a line of what was loaded.
            workers: Number of these threads.
            progress: For a progress bar.
        """
        writer = ShardWriter(self.folder / "shards")
        tasks = -(-self.line_count // self.lines)
        open_items: dict[int, int] = {}

        def report() -> None:
            if progress is not None:
                finished = len(queue.done()) * self.per_line * self.lines
                progress(min(self.count, finished + sum(open_items.values())), self.count)

        with WorkQueue(self.folder, tasks, writer.name, self.stale_after) as queue:
            try:
                report()
                while not queue.is_complete():
                    stream = self._batches(queue, open_items)
                    for batch, loaded in prefetched(stream, lambda b: group(b.items), load, workers, _AHEAD):
                        if queue.is_lost(batch.claim):
                            open_items.pop(batch.claim.task, None)
                            continue
                        writer.append({"line": batch.line, "results": work(loaded)})
                        open_items[batch.claim.task] = open_items.get(batch.claim.task, 0) + len(batch.items)
                        if batch.is_last:
                            queue.finish(batch.claim)
                            open_items.pop(batch.claim.task)
                        report()
                    queue.wait(report)
                report()
            finally:
                writer.close()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Number and result of each item that is done; of lines that were made twice, both."""
        for line in read_shards(self.folder / "shards"):
            yield from enumerate(line.value["results"], line.value["line"] * self.per_line)

    def index(self) -> dict[int, Line]:
        """Where each line that is done is, without what it holds."""
        places: dict[int, Line] = {}
        for line in read_shards(self.folder / "shards"):
            places.setdefault(line.value["line"], line._replace(value={}))
        return places

    def _batches(self, queue: WorkQueue, open_items: dict[int, int]) -> Iterator[_Batch]:
        """Claimed lines that are not done."""
        for claim in queue.claims():
            first = claim.task * self.lines
            lines = range(first, min(first + self.lines, self.line_count))
            before = {
                line.value["line"]
                for name in queue.earlier_shards(claim)
                for line in read_shard(self.folder / "shards" / name)
            }
            left = [line for line in lines if line not in before]
            open_items[claim.task] = (len(lines) - len(left)) * self.per_line
            if not left:
                queue.finish(claim)
                open_items.pop(claim.task)
            for line in left:
                items = range(line * self.per_line, min((line + 1) * self.per_line, self.count))
                yield _Batch(claim, line, items, line == left[-1])


def once(folder: str | Path, work: Callable[[], object], stale_after: float = 300.0) -> None:
    """Do something in one of the processes, while the others wait; never again."""
    with WorkQueue(folder, 1, stale_after=stale_after) as queue:
        while not queue.is_complete():
            for claim in queue.claims():
                work()
                queue.finish(claim)
            queue.wait()
