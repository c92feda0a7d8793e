"""Relations of two boxes in words, by their places and sizes; xyxy in pixels."""

from collections.abc import Sequence

from mg_llava.data.synthesis.scenes import area, box_overlap, shared_area

_MARGIN = 0.5
"""Share of the mean size by which centers must lie apart."""
_INSIDE = 0.9
_LARGER = 1.5
_OVERLAP = 0.1


def relations_of(first: Sequence[float], second: Sequence[float]) -> list[str]:
    """What the first box is to the second: ``left of``, ``above``, ``inside``, ``larger than``, ``overlapping``..."""
    words = [*_side(first, second, 0, ("left of", "right of")), *_side(first, second, 1, ("above", "below"))]
    shared = shared_area(first, second)
    sizes = area(first), area(second)
    is_inside = shared >= _INSIDE * sizes[0] and sizes[0] < sizes[1]
    is_around = shared >= _INSIDE * sizes[1] and sizes[1] < sizes[0]
    words += ["inside"] * is_inside + ["around"] * is_around
    words += ["larger than"] * (sizes[0] > _LARGER * sizes[1]) + ["smaller than"] * (sizes[1] > _LARGER * sizes[0])
    if not (is_inside or is_around) and box_overlap(first, second) > _OVERLAP:
        words.append("overlapping")
    return words


def describe_relation(words: Sequence[str]) -> str:
    """A sentence such as ``It is left of and smaller than the other one``."""
    *before, last = words
    listed = f"{', '.join(before)} and {last}" if before else last
    return f"It is {listed} the other one."


def _side(first: Sequence[float], second: Sequence[float], axis: int, names: tuple[str, str]) -> list[str]:
    """The first name where the first center lies before the second by enough of their sizes, else the second name."""
    gap = (second[axis] + second[axis + 2] - first[axis] - first[axis + 2]) / 2
    sizes = [box[axis + 2] - box[axis] for box in (first, second)]
    if abs(gap) <= _MARGIN * sum(sizes) / 2:
        return []
    return [names[0] if gap > 0 else names[1]]
