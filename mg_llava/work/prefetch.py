"""Decode ahead: groups of things are loaded in threads while the groups before them are worked on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Group = TypeVar("Group")
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetched(
    groups: Iterable[Group],
    items: Callable[[Group], Sequence[Item]],
    load: Callable[[Item], Loaded],
    workers: int,
    ahead: int = 2,
) -> Generator[tuple[Group, list[Loaded]]]:
    """Groups in their order, each with its items loaded.

    Args:
        groups: Asked for the next one as soon as there is room, so that claims of work follow it closely.
        items: The items of a group.
        load: Loads an item, in a thread.
        workers: Number of threads.
        ahead: Groups that are loaded or being loaded beside the one that is worked on.
    """
    waiting: deque[tuple[Group, list[Future[Loaded]]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for group in groups:
                waiting.append((group, [pool.submit(load, item) for item in items(group)]))
                if len(waiting) > ahead:
                    yield _wait(waiting)
            while waiting:
                yield _wait(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _wait(waiting: deque[tuple[Group, list[Future[Loaded]]]]) -> tuple[Group, list[Loaded]]:
    group, futures = waiting.popleft()
    return group, [future.result() for future in futures]
