"""The held-out questions about regions of the miniature by kind: words by exact match, boxes at an overlap of half.

Examples:
    python data/nano/grounding_benchmark.py CONFIG.py --checkpoint FILE --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import benchmarks  # noqa: E402, F401
import grounding  # noqa: E402

from mg_llava.evaluation import command  # noqa: E402
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question  # noqa: E402
from mg_llava.evaluation.release import Release  # noqa: E402
from mg_llava.evaluation.scoring.box_replies import overlap  # noqa: E402
from mg_llava.evaluation.scoring.figures import group_by, mean_score  # noqa: E402
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions  # noqa: E402
from mg_llava.tokens import BOX_PLACEHOLDER  # noqa: E402

MAKE = "it with `python data/nano/grounding.py`"
Line = dict[str, Any]


def load_lines(paths: Sequence[Path]) -> list[Line]:
    """The lines of ``heldout.jsonl``: id, picture, image, size, kind, question, answer, objects."""
    return [json.loads(line) for line in paths[0].read_text().splitlines()]


def score_regions(lines: Sequence[Line], predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Share of right answers, of all and by kind; a box is right at an overlap of one half, none is wrong."""
    joined = join_predictions([line["id"] for line in lines], predictions, "id")
    samples = [_rate(line, text) for line, text, _ in joined.beside(lines)]
    metrics: dict[str, Any] = {"accuracy": mean_score(samples)}
    boxes = [sample for sample in samples if "iou" in sample]
    metrics["mean_iou"] = float(np.mean([sample["iou"] for sample in boxes])) if boxes else 0.0
    metrics["no_box"] = float(np.mean([sample["parsed"] is None for sample in boxes])) if boxes else 0.0
    result = joined.result({"regions": (metrics, samples)})
    kinds = group_by(samples, lambda sample: sample["category"])
    result["rules"]["regions"]["metrics"]["kinds"] = {kind: mean_score(some) for kind, some in kinds.items()}
    return result


def _rate(line: Line, text: str) -> Line:
    sample = {"id": line["id"], "category": line["kind"], "answer": line["answer"]}
    mark = BOX_PLACEHOLDER.fullmatch(line["answer"])
    if mark is None:
        return {**sample, "parsed": text, "score": float(text.strip() == line["answer"])}
    found = grounding.BOX_TEXT.read(text, tuple(line["size"])).boxes[:1].tolist()
    iou = overlap(found[0], line["objects"][int(mark[1])]["box"]) if found else 0.0
    return {**sample, "parsed": found[0] if found else None, "iou": iou, "score": float(iou >= 0.5)}


@BENCHMARKS.register
class NanoRegions(Benchmark):
    """``heldout.jsonl`` or ``heldout_named.jsonl``; pictures are in ``images/`` beside them."""

    scorer = "nano_regions"
    form = 'heldout.jsonl; lines {"id", "prediction"}'
    load, rate = staticmethod(load_lines), staticmethod(score_regions)
    releases = (
        Release("nano_regions", ("grounding/heldout.jsonl",), "grounding/images", MAKE),
        Release("nano_names", ("grounding/heldout_named.jsonl",), "grounding/images", MAKE),
    )
    prompts = ("nano",)
    id_field = "id"
    headline = ("regions", "accuracy")
    max_new_tokens = 12

    def questions(self) -> Sequence[Question]:
        """One question of each kind for each picture."""
        return [self._question(line) for line in load_lines(self.data)]

    def _question(self, line: Line) -> Question:
        asked = self.ask(line["id"], line["question"], line["image"], "images", box_key=line["picture"])
        return replace(asked, objects=line["objects"])


def open_config(path: str) -> Config:
    """A config whose questions are asked as they are written: coordinates do not bring their object image."""
    config = Config.fromfile(path)
    config.picture_processor.setdefault("regions", {})["attach"] = "placeholders"
    return config


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="config", help="config of the training")
    command.add_arguments(parser)
    parser.add_argument("--named", action="store_true", help="ask about boxes by their names, and the other questions")
    parser.set_defaults(data=grounding.OUT.parent, box_file=grounding.OUT / "heldout_boxes.json")
    arguments = parser.parse_args()
    if not arguments.checkpoint:
        parser.error("--checkpoint is needed")
    arguments.model = open_config(arguments.model)
    return command.run(arguments, ["nano", "nano_names"] if arguments.named else ["nano_regions"])


if __name__ == "__main__":
    sys.exit(main())
