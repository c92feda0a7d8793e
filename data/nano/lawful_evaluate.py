"""Evaluate MR-MLLM in miniature: AP of raw and refined objects, and answers, on clean and shifted pictures.

The LLM's weight beside the detector is fitted on further pictures, clean and blurred. Answers are asked for without
the perception prompt, and with the raw, the refined and the true objects in it. Writes ``results.json`` as
``tools/evaluate.py`` does, and box files.

Examples:
    python data/nano/lawful_evaluate.py configs/mr_mllm/mr_mllm_nano_instruct.py --checkpoint FILE --out result
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import language  # noqa: E402

from mg_llava.data.boxes.store import open_box_store  # noqa: E402
from mg_llava.data.pictures.files import open_picture  # noqa: E402
from mg_llava.data.records.schema import BoxRecord  # noqa: E402
from mg_llava.evaluation.detection.coco import open_instances, score_detections  # noqa: E402
from mg_llava.evaluation.detection.run import RAW, evaluate_objects  # noqa: E402
from mg_llava.evaluation.detection.shifts import Shift  # noqa: E402
from mg_llava.inference import Predictor, Request  # noqa: E402
from mg_llava.inference.naming import Naming  # noqa: E402
from mg_llava.inference.objects import ObjectFinder  # noqa: E402
from mg_llava.models.encoders.views import normalize  # noqa: E402
from mg_llava.models.interfaces import Detected, Seen  # noqa: E402

SHIFTS = ("clean", "contrast:0.5", "noise:25", "noise:40", "blur:1.5")
ASKED = ("clean", "blur:1.5")
"""Shifts under which questions are asked, the weight is fitted, and intervals are drawn."""
WEIGHTS = (0.0, 0.5, 1.0)
FITTED = 100
"""Pictures on which the weight is fitted, none of those that are reported."""
DRAWS = 40
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class RememberingFinder(ObjectFinder):
    """An ``ObjectFinder`` that asks the LLM once for each list of names, for all pictures, weights and shifts."""

    known: dict[str, float] = field(default_factory=dict)

    def _likelihood(self, texts: Sequence[str]) -> list[float]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, super()._likelihood(new), strict=True))
        return [self.known[text] for text in texts]


def remember(encoder: Any) -> None:
    """Let a frozen encoder see each canvas once; all arms show it the same ones."""
    see, known = encoder.forward, {}

    def forward(canvas: Tensor) -> Seen:
        pixels = normalize(canvas, tuple(encoder.spec.mean), tuple(encoder.spec.std))
        rows = []
        for row in pixels.split(1):
            key = hashlib.blake2b(row.numpy().tobytes()).digest()
            if key not in known:
                known[key] = see(row)
            rows.append(known[key])
        found = [row.detected for row in rows]
        tokens = None if rows[0].tokens is None else torch.cat([row.tokens for row in rows])
        detected = None if found[0] is None else Detected(*map(torch.cat, zip(*found, strict=True)))
        return Seen(tokens, (), detected)

    encoder.forward = forward


def fit_weight(finder: RememberingFinder, data: Path, limit: int | None) -> tuple[float, dict[str, float]]:
    """The LLM's weight with the best mean AP50 of clean and blurred pictures, and the mean of each weight."""
    truth = open_instances(str(data / "fit_instances.json"))
    numbers = sorted(truth.imgs)[: min(FITTED, limit or FITTED)]
    images = {number: open_picture(data / "images" / truth.imgs[number]["file_name"], "fit") for number in numbers}
    found = {}
    for weight in WEIGHTS:
        trial = replace(finder, naming=replace(finder.naming, weight=weight))
        scores = []
        for shift in map(Shift.parse, ASKED):
            refined = {number: trial(shift(image, number)).refined for number, image in images.items()}
            scores.append(score_detections(truth, refined).numbers["AP50"])
        found[weight] = fmean(scores)
    return max(found, key=lambda weight: found[weight]), {str(weight): score for weight, score in found.items()}


def finders_of(predictor: Predictor, data: Path, limit: int | None) -> tuple[dict[str, ObjectFinder], dict[str, Any]]:
    """Finders of all arms, and how the weight was fitted."""
    naming = Naming(beam=3, candidates=4)
    base = (predictor.model, predictor.front_end)
    told = RememberingFinder(*base, "language", naming, language.WHERE_PROMPT)
    weight, scores = fit_weight(told, data, limit)
    fitted = replace(naming, weight=weight)
    finders = {
        "language": replace(told, naming=fitted),
        "language, weight 1": told,
        "head": ObjectFinder(*base, "head", naming, language.WHERE_PROMPT),
        "both": replace(told, refine="both", naming=fitted),
    }
    return finders, {"weight": weight, "AP50 of weights": scores}


def answer(
    predictor: Predictor, bare: Predictor, data: Path, shift: Shift, boxes: Mapping[str, Any], limit: int | None
) -> dict[str, dict[str, float]]:
    """Share of right answers by arm and kind of question; box files by arm."""
    lines = [json.loads(line) for line in (data / "heldout.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(line["picture"] for line in lines))[:limit]
    lines = [line for line in lines if line["picture"] in names]
    right: dict[str, dict[str, list[bool]]] = {}
    for arm in ("none", *boxes):
        asked = bare if arm == "none" else predictor
        requests = [
            Request(
                line["question"],
                shift(open_picture(data / "images" / line["image"], line["id"]), names.index(line["picture"])),
                [] if arm == "none" else record_of(boxes[arm], line["picture"]),
                key=line["picture"],
            )
            for line in lines
        ]
        for line, found in zip(lines, asked.predict_many(requests, batch_size=32, exact=False), strict=True):
            right.setdefault(arm, {}).setdefault(line["kind"], []).append(found.text == line["answer"])
    means = {arm: {kind: sum(own) / len(own) for kind, own in kinds.items()} for arm, kinds in right.items()}
    return {arm: {**kinds, "all": sum(kinds.values()) / len(kinds)} for arm, kinds in means.items()}


def record_of(store: Any, picture: str) -> dict[str, Any]:
    """Boxes of a picture as a request takes them."""
    record: BoxRecord = store.get(picture)
    return {"boxes": record.boxes.tolist(), "scores": record.scores.tolist(), "labels": list(record.labels)}


def open_arms(out: Path, data: Path, arms: list[str], shift: str) -> dict[str, Any]:
    """Box files of raw, refined and true objects, by the names of the held-out pictures."""
    name = shift.replace(":", "_")
    stores = {}
    for arm in arms:
        records = json.loads((out / f"{arm}_{name}.json").read_text())
        for record in records:
            record["id"] = f"heldout-{record['id']}"
        file = out / f"{arm}_{name}_heldout.json"
        file.write_text(json.dumps(records))
        stores[arm] = open_box_store(file)
    return {**stores, "gold": open_box_store(data / "heldout_exact.json")}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of the training")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=HERE / "lawful")
    parser.add_argument("--limit", type=int, help="look at the first pictures alone")
    parser.add_argument("--llm", help="another LLM for that of the config, of the same tokenizer")
    arguments = parser.parse_args()
    from mmengine.config import Config

    data, out, limit = arguments.data, arguments.out, arguments.limit
    out.mkdir(parents=True, exist_ok=True)
    config = Config.fromfile(arguments.config)
    if arguments.llm:
        config.model.llm.path = arguments.llm
    predictor = Predictor.from_pretrained(config, arguments.checkpoint, "cpu", max_new_tokens=16)
    bare = copy.copy(predictor)
    bare.front_end = replace(predictor.front_end, parts=())
    for part, encoder in predictor.model.named_parts():
        if part.role == "encoder":
            remember(encoder)
    finders, about = finders_of(predictor, data, limit)
    where = (str(data / "heldout_instances.json"), str(data / "images"), out)
    drawn = evaluate_objects({"language": finders["language"]}, *where, list(map(Shift.parse, ASKED)), limit, DRAWS)
    objects = evaluate_objects(finders, *where, list(map(Shift.parse, SHIFTS)), limit, draws=0)
    for shift, arms in drawn.items():
        objects[shift]["language"]["gain"] = arms["language"]["gain"]
    answers = {}
    for shift in ASKED:
        boxes = open_arms(out, data, [RAW, "language"], shift)
        answers[shift] = answer(predictor, bare, data, Shift.parse(shift), boxes, limit)
        print(shift, {arm: round(kinds["all"], 3) for arm, kinds in answers[shift].items()}, flush=True)
    rules = {"objects": {"metrics": objects}, "answers": {"metrics": answers}}
    blur = objects["blur:1.5"]["language"]["numbers"]["AP50"]
    headline = {"rule": "objects", "metric": "AP50 of blurred pictures, named by the LLM", "value": blur}
    found = {**about, "headline": headline, "score": {"rules": rules}}
    (out / "results.json").write_text(json.dumps({"benchmarks": {"lawful": found}}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
