"""COCO's twelve numbers of detections by pycocotools, and the interval of the difference of two detectors."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_llava.data.records.schema import BoxRecord
from mg_llava.evaluation.statistics import CONFIDENCE, Interval

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In pycocotools' order; -1 where there is no object of a size."""


def open_instances(path: str) -> Any:
    """Annotations in COCO's format.

    Raises:
        RuntimeError: pycocotools is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It is no such file.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise RuntimeError(
            "COCO's numbers need the package pycocotools: pip install 'mg_llava[detect-eval]'"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            instances = COCO(path)
        if not {"images", "annotations", "categories"} <= set(instances.dataset):
            raise ValueError("it lacks images, annotations or categories")
    except FileNotFoundError:
        raise
    except Exception as error:  # of a dozen kinds, by what is damaged
        raise ValueError(f"{path} is no file of COCO's annotations: {error}") from error
    return instances


@dataclass(frozen=True)
class Scored:
    """Detections, matched with annotations.

    Attributes:
        evaluation: pycocotools' evaluation.
        numbers: The twelve numbers by name.
    """

    evaluation: Any
    numbers: dict[str, float]

    def redrawn(self, pictures: np.ndarray) -> dict[str, float]:
        """The numbers of (n,) other pictures out of the n, some of them several times."""
        evaluation, parameters = self.evaluation, self.evaluation.params
        whole = evaluation.evalImgs
        groups = len(whole) // len(parameters.imgIds)
        places = np.arange(groups)[:, None] * len(parameters.imgIds) + pictures  # of each category and size
        evaluation.evalImgs = [whole[place] for place in places.flatten()]
        try:
            return _summarize(evaluation)
        finally:
            evaluation.evalImgs = whole


def score_detections(instances: Any, found: Mapping[int, BoxRecord]) -> Scored:
    """Score the objects that were found in pictures.

    Args:
        instances: As ``open_instances`` gives them.
        found: By id of the picture its objects, original pixels; those pictures alone are scored, and an object whose
            label is no category is no detection.
    """
    from pycocotools.cocoeval import COCOeval

    numbers = {category["name"]: number for number, category in instances.cats.items()}
    rows = [
        [picture, *corners[:2], corners[2] - corners[0], corners[3] - corners[1], score, numbers[label]]
        for picture, record in found.items()
        for corners, score, label in zip(record.boxes.tolist(), record.scores.tolist(), record.labels, strict=True)
        if label in numbers
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        results = instances.loadRes(np.array(rows, dtype=np.float64).reshape(-1, 7)) if rows else type(instances)()
        evaluation = COCOeval(instances, results, "bbox")
        evaluation.params.imgIds = sorted(found)
        evaluation.evaluate()
    return Scored(evaluation, _summarize(evaluation))


def compare_detections(first: Scored, second: Scored, number: str = "AP", draws: int = 200) -> Interval:
    """Difference ``second - first`` of one of the numbers, with its bootstrap interval over pictures.

    Args:
        first: Detections of the same pictures.
        second: Further ones.
        number: One of ``NUMBERS``.
        draws: Number of bootstrap samples; the same pictures are drawn for both.

    Raises:
        ValueError: They are of other pictures.
    """
    pictures = [scored.evaluation.params.imgIds for scored in (first, second)]
    if pictures[0] != pictures[1]:
        raise ValueError("detections of different pictures cannot be compared; score both on the same ones")
    count, rng = len(pictures[0]), np.random.default_rng(0)
    chosen = [rng.integers(0, count, count) for _ in range(draws)]
    found = [second.redrawn(one)[number] - first.redrawn(one)[number] for one in chosen]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(second.numbers[number] - first.numbers[number], float(low), float(high), count)


def _summarize(evaluation: Any) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    values: Sequence[float] = evaluation.stats.tolist()
    return dict(zip(NUMBERS, values, strict=True))
