"""Referring expression generation on RefCOCOg: what would one say of the object in a box?

All sentences of an object are its references. CIDEr is the headline; METEOR needs Java and is named as not computed
where there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.refcoco import REFCOCO_ADVICE, find_coco_picture, load_refcoco
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.files import listing
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult, join_predictions

_PROMPT = "Describe the object at <box:0> in a few words, so that one would find it again."


@dataclass(frozen=True)
class DescribedObject:
    """An object with the sentences that refer to it.

    Attributes:
        id: Picture and number of the object in it.
        picture: File name of the picture.
        size: Its width and height.
        box: xyxy in pixels.
        sentences: The references.
    """

    id: str
    picture: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    sentences: tuple[str, ...]


def load_described(paths: Sequence[Path]) -> list[DescribedObject]:
    """Objects of a JSON list as ``refcoco`` has it; sentences with one picture and box are of one object."""
    found: dict[Any, list[str]] = {}
    for record in load_refcoco(paths):
        if record.xywh is None or record.size is None:
            raise ValueError(f"{listing(paths)}: sentence {record.id!r} needs bbox, height and width in pixels")
        found.setdefault((record.picture, record.size, record.xywh), []).append(record.sentence)
    counts: dict[str, int] = {}
    objects = []
    for (picture, size, (x, y, w, h)), sentences in found.items():
        number = counts[picture] = counts.get(picture, -1) + 1
        name = f"{Path(picture).stem}#{number}"
        objects.append(DescribedObject(name, picture, size, (x, y, x + w, y + h), tuple(sentences)))
    return objects


def score_described(objects: Sequence[DescribedObject], predictions: Lines, **options: Any) -> ScoreResult:
    """CIDEr and METEOR; lines have ``id`` and ``text``. An object without a reply has an empty one."""
    from mg_llava.evaluation.scoring.captions import rate_captions

    ids = [one.id for one in objects]
    joined = join_predictions(ids, predictions, "id", ("text", "prediction"))
    return rate_captions(joined, ids, [one.sentences for one in objects], [one.picture for one in objects])


@BENCHMARKS.register
class RegionCaptions(Benchmark):
    """Descriptions of objects in boxes, on RefCOCOg; questions have the boxes as the model was trained with."""

    scorer = "region_captions"
    form = 'JSON list of refcoco; lines {"id": "PICTURE#NUMBER", "text"}'
    load, rate = staticmethod(load_described), staticmethod(score_described)
    releases = tuple(
        Release(
            f"region_captions_refcocog_{split}",
            (f"refcoco/refcocog_{split}.json",),
            "coco/train2014",
            REFCOCO_ADVICE.format(file=f"refcoco/refcocog_{split}.json"),
            None,
            "not in the paper; all sentences of an object are references. Visual Genome's two test sets are others",
        )
        for split in ("val", "test")
    )
    id_field, text_field = "id", "text"
    headline = ("official", "CIDEr")
    max_new_tokens = 40

    def questions(self) -> Sequence[Question]:
        """One for each object."""
        return [self._question(one) for one in load_described(self.data)]

    def _question(self, one: DescribedObject) -> Question:
        picture = find_coco_picture(self.picture_folder(), one.picture)
        asked = self.ask(one.id, _PROMPT, picture, owner=f"object {one.id}", box_key=one.picture)
        return replace(asked, objects=[list(one.box)])
