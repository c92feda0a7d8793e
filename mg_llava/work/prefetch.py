"""Decode ahead: groups of things are loaded in threads while the groups before them are worked on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Group = TypeVar("Group")
_Item = TypeVar("_Item")
_Loaded = TypeVar("_Loaded")


def prefetched(
    groups: Iterable[Group],
    items: Callable[[Group], Sequence[_Item]],
    load: Callable[[_Item], _Loaded],
    workers: int,
    ahead: int = 2,
) -> Generator[tuple[Group, list[_Loaded]]]:
    """Groups in their order, each with its items loaded by ``workers`` threads.

    Besides the group that is worked on, ``ahead`` groups are loaded or being loaded; the next one is asked for as soon
    as there is room.
    """
    waiting: deque[tuple[Group, list[Future[_Loaded]]]] = deque()

    def first() -> tuple[Group, list[_Loaded]]:
        group, futures = waiting.popleft()
        return group, [future.result() for future in futures]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for group in groups:
                waiting.append((group, [pool.submit(load, item) for item in items(group)]))
                if len(waiting) > ahead:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)
