"""Evaluate MR-MLLM in miniature: AP of raw and refined objects, and answers, on clean and shifted pictures.

The LLM's weight beside the detector is fitted on a hundred further clean pictures. Answers are asked for without the
perception prompt, and with the raw, the refined and the true objects in it. Writes ``results.json`` as
``tools/evaluate.py`` does, and box files.

Examples:
    python data/nano/lawful_evaluate.py configs/mr_mllm/mr_mllm_nano_instruct.py --checkpoint FILE --out result
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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

SHIFTS = ("clean", "contrast:0.5", "noise:25", "noise:40", "blur:1.5")
ASKED = ("clean", "blur:1.5")
"""Shifts under which questions are asked."""
WEIGHTS = (0.0, 0.5, 1.0)
BEARABLE = 0.005
"""Loss of AP50 on clean pictures that a larger weight may cost."""


def fit_weight(predictor: Predictor, data: Path, limit: int | None) -> float:
    """The LLM's largest weight that costs nothing on clean pictures, which are not among those that are reported."""
    truth = open_instances(str(data / "fit_instances.json"))
    numbers = sorted(truth.imgs)[: limit and limit // 2]
    images = {number: open_picture(data / "images" / truth.imgs[number]["file_name"], "fit") for number in numbers}
    found = {}
    for weight in WEIGHTS:
        finder = finder_of(predictor, "language", weight)
        refined = {number: finder(image).refined for number, image in images.items()}
        found[weight] = score_detections(truth, refined).numbers["AP50"]
    return max(weight for weight, number in found.items() if number >= max(found.values()) - BEARABLE)


def finder_of(predictor: Predictor, refine: Any, weight: float = 0.0) -> ObjectFinder:
    """Objects as an arm finds them."""
    naming = Naming(weight=weight, beam=4, candidates=4)
    return ObjectFinder(predictor.model, predictor.front_end, refine, naming, language.WHERE_PROMPT)


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
        for line, found in zip(lines, asked.predict_many(requests, batch_size=32), strict=True):
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
    weight = fit_weight(predictor, data, limit)
    finders = {"language": finder_of(predictor, "language", weight), "head": finder_of(predictor, "head")}
    settings: dict[str, Any] = {"shifts": [Shift.parse(text) for text in SHIFTS], "limit": limit, "draws": 100}
    objects = evaluate_objects(finders, str(data / "heldout_instances.json"), str(data / "images"), out, **settings)
    answers = {}
    for shift in ASKED:
        boxes = open_arms(out, data, [RAW, *finders], shift)
        answers[shift] = answer(predictor, bare, data, Shift.parse(shift), boxes, limit)
        print(shift, {arm: round(kinds["all"], 3) for arm, kinds in answers[shift].items()}, flush=True)
    rules = {"objects": {"metrics": objects}, "answers": {"metrics": answers}}
    blur = objects["blur:1.5"]["language"]["numbers"]["AP50"]
    headline = {"rule": "objects", "metric": "AP50 of blurred pictures, named by the LLM", "value": blur}
    about = {"weight": weight, "headline": headline, "score": {"rules": rules}}
    (out / "results.json").write_text(json.dumps({"benchmarks": {"lawful": about}}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
