"""How many samples of each task a mixture has, and which of all there are.

Shapes: S scenes, T tasks.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mg_llava.data.synthesis.tasks import TASKS

WANTED: Mapping[str, int] = {
    "text_to_box": 100_000,
    "box_to_text": 60_000,
    "image_to_text": 40_000,
    "image_to_box": 40_000,
    "text_to_image": 20_000,
    "box_to_image": 14_000,
    "box_is_image": 6_000,
    "box_image_to_text": 20_000,
    "text_image_to_box": 10_000,
    "relation": 16_000,
    "relation_to_box": 4_000,
    "list": 10_000,
    "caption": 20_000,
    "presence": 5_000,
    "count": 5_000,
}
"""Samples of each task in the mixture that is made unless told otherwise: 370,000."""

Drawn = Sequence[tuple[int, Sequence[tuple[int, int]]]]
"""Numbers of scenes, each with its samples: number of the task, and which of its samples in the scene."""


def check_wanted(wanted: Mapping[str, int]) -> dict[str, int]:
    """Numbers of samples for all tasks; 0 for those that are not named.

    Raises:
        ValueError: A task is unknown, or a number is negative.
    """
    unknown = sorted(set(wanted) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown tasks: {', '.join(unknown)}; known are {', '.join(TASKS)}")
    wrong = [name for name, count in wanted.items() if not isinstance(count, int) or count < 0]
    if wrong:
        raise ValueError(f"number of samples of {wrong[0]} is {wanted[wrong[0]]!r}; a whole number from 0 is needed")
    return {name: wanted.get(name, 0) for name in TASKS}


def draw_samples(counts: np.ndarray, sources: Sequence[str], wanted: Mapping[str, int], seed: int) -> Drawn:
    """Draw the samples of a mixture; sources give alike many of a task, as far as they have them.

    Args:
        counts: (S, T) int, samples that each scene has.
        sources: S names.
        wanted: Of all tasks, see :func:`check_wanted`.
        seed: Of the drawing.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    names = list(dict.fromkeys(sources))
    owners = np.array([names.index(name) for name in sources], dtype=np.int64)
    for task, name in enumerate(TASKS):
        rows = [np.flatnonzero(owners == number) for number in range(len(names))]
        room = [int(counts[own, task].sum()) for own in rows]
        for number, count in enumerate(spread(wanted[name], room)):
            ends = np.cumsum(counts[rows[number], task])
            rng = np.random.default_rng([seed, task, number])
            for place in np.sort(rng.choice(room[number], count, replace=False)).tolist():
                row = int(np.searchsorted(ends, place, side="right"))
                start = int(ends[row - 1]) if row else 0
                found.setdefault(int(rows[number][row]), []).append((task, place - start))
    return [(scene, found[scene]) for scene in sorted(found)]


def spread(wanted: int, room: Sequence[int]) -> list[int]:
    """Parts of a number that are as equal as there is room for them."""
    parts = [0] * len(room)
    left = min(wanted, sum(room))
    open_ones = [number for number, most in enumerate(room) if most]
    while left:
        share = max(1, left // len(open_ones))
        for number in open_ones:
            more = min(share, room[number] - parts[number], left)
            parts[number] += more
            left -= more
        open_ones = [number for number in open_ones if parts[number] < room[number]]
    return parts
