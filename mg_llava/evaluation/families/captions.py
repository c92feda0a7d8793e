"""Captions of pictures in COCO's format (COCO, NoCaps, Flickr30k): CIDEr, and METEOR where there is Java."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult, join_predictions
from mg_llava.work.json_text import load_object

_PROMPT = "Describe the picture in one short sentence."


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its captions, the references."""

    id: int | str
    file: str
    captions: tuple[str, ...]


def load_captioned(paths: Sequence[Path]) -> list[CaptionedPicture]:
    """Pictures of files ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``.

    Raises:
        ValueError: A file is malformed, or a picture has no caption.
    """
    found = []
    for path in paths:
        try:
            content = load_object(path)
            captions: dict[Any, list[str]] = {picture["id"]: [] for picture in content["images"]}
            for entry in content["annotations"]:
                captions[entry["image_id"]].append(str(entry["caption"]))
            pictures = [
                CaptionedPicture(p["id"], str(p["file_name"]), tuple(captions[p["id"]])) for p in content["images"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path} is no caption file of COCO ({type(error).__name__}: {error}); it needs "images" with id and '
                'file_name, and "annotations" with image_id and caption'
            ) from error
        if bare := [picture.id for picture in pictures if not picture.captions]:
            raise ValueError(f"{path}: {len(bare)} pictures have no caption, such as {bare[0]!r}; leave them out")
        found += pictures
    return found


def score_captioned(pictures: Sequence[CaptionedPicture], predictions: Lines, **options: Any) -> ScoreResult:
    """CIDEr and METEOR; lines have ``image_id`` and ``caption``. A picture without a reply has an empty one."""
    from mg_llava.evaluation.scoring.captions import rate_captions

    ids = [one.id for one in pictures]
    joined = join_predictions(ids, predictions, "image_id", ("caption", "text", "prediction"))
    return rate_captions(joined, ids, [one.captions for one in pictures], ids)


@BENCHMARKS.register
class Captions(Benchmark):
    """Short captions of whole pictures."""

    scorer = "captions"
    form = 'caption file of COCO; lines {"image_id", "caption"}'
    load, rate = staticmethod(load_captioned), staticmethod(score_captioned)
    releases = tuple(
        Release(name, (file,), pictures, advice, None, "not in the paper; each picture's captions are references")
        for name, file, pictures, advice in (
            (
                "captions_coco_val",
                "captions/captions_val2014.json",
                "coco/val2014",
                "COCO's annotations_trainval2014.zip (https://cocodataset.org) to captions; pictures to coco/val2014",
            ),
            (
                "captions_nocaps_val",
                "captions/nocaps_val_4500_captions.json",
                "nocaps/val",
                "NoCaps val (https://nocaps.org/download) to captions; its pictures to nocaps/val",
            ),
        )
    )
    id_field, text_field = "image_id", "caption"
    headline = ("official", "CIDEr")
    max_new_tokens = 40

    def questions(self) -> Sequence[Question]:
        """One for each picture."""
        return [
            self.ask(one.id, _PROMPT, one.file, owner=f"picture {one.id!r}", box_key=one.id)
            for one in load_captioned(self.data)
        ]
