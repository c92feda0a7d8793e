"""Pictures of a run with their boxes, to look at."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mg_llava.data.boxes.filter import filter_boxes
from mg_llava.detection.run.merge import Results
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.sources import PictureSource
from mg_llava.drawing.boxes import draw_boxes


def visualize(settings: JobSettings, count: int) -> Iterator[Path]:
    """Draw boxes, labels and scores on pictures spread evenly over a finished run, after the default filter.

    Yields:
        The ``count`` PNG files, in the folder ``visualize`` of the run.
    """
    results, reader = Results(settings), settings.reader()
    folder = Path(settings.out) / "visualize"
    folder.mkdir(exist_ok=True)
    total = len(results.plan)
    for unique in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist():
        result = results.unique(unique)
        if "error" in result:
            continue
        number, part = results.plan.source_of(unique)
        source = PictureSource(*results.sources[number])
        boxes = np.array(result["boxes"]).reshape(-1, 4)
        kept = filter_boxes(boxes, np.array(result["scores"]), result["labels"]).kept
        labels, scores = ([result[name][i] for i in kept] for name in ("labels", "scores"))
        path = folder / f"{unique:07d}_{re.sub('[^A-Za-z0-9._-]+', '_', source.id)[-80:]}.png"
        draw_boxes(reader.open(source)[part], boxes[kept], labels, scores).save(path)
        yield path
