"""Evaluate a checkpoint on the held-out questions of the miniature: exact match by kind of question.

Examples:
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint work_dirs/.../iter_250.pth
    python data/nano/evaluate.py configs/mg_llava_nano_instruct.py --checkpoint ... --boxes none --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GENERATED = HERE / "generated"
BOX_FILES = {"proposals": "heldout_boxes.json", "exact": "heldout_exact_boxes.json", "none": None}
Result = dict[str, Any]


def load_questions(data: Path = GENERATED, limit: int | None = None) -> list[dict[str, str]]:
    """The held-out questions; ``limit`` keeps those of the first so many pictures.

    Raises:
        FileNotFoundError: If the data has not been made.
    """
    path = data / "heldout.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run `python data/nano/make_data.py` first")
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    pictures = list(dict.fromkeys(question["picture"] for question in questions))[:limit]
    return [question for question in questions if question["picture"] in set(pictures)]


def load_chance(data: Path = GENERATED) -> dict[str, float]:
    """Accuracy of guessing, by kind."""
    return json.loads((data / "meta.json").read_text())["chance"]


def score(questions: Sequence[Mapping[str, str]], answers: Iterable[str], chance: Mapping[str, float]) -> Result:
    """Exact match of the stripped text.

    Returns:
        ``kinds``: accuracy, number of right answers and of questions, and chance of each kind; ``overall``: the same
        over all questions; ``answers``: every question with what was answered.
    """
    rows = [
        {**question, "predicted": text, "right": text.strip() == question["answer"].strip()}
        for question, text in zip(questions, answers, strict=True)
    ]
    kinds = {}
    for kind in dict.fromkeys(question["kind"] for question in questions):
        kinds[kind] = _accuracy([row for row in rows if row["kind"] == kind], chance)
    return {"kinds": kinds, "overall": _accuracy(rows, chance), "answers": rows}


def _accuracy(rows: Sequence[Mapping[str, Any]], chance: Mapping[str, float]) -> dict[str, float]:
    right = sum(row["right"] for row in rows)
    guessed = sum(chance[row["kind"]] for row in rows)
    count = len(rows)
    return {"accuracy": right / count, "right": right, "count": count, "chance": guessed / count}


def format_table(columns: Mapping[str, Result]) -> str:
    """Accuracy in percent by kind, one column for each result, beside chance.

    Args:
        columns: Results of :func:`score` on the same questions, by title.
    """
    first = next(iter(columns.values()))
    rows = [["question kind", "chance", *columns]]
    for kind in (*first["kinds"], "all"):
        cells = [result["overall"] if kind == "all" else result["kinds"][kind] for result in columns.values()]
        rows.append([kind, *(f"{100 * value:.1f}" for value in (cells[0]["chance"], *(c["accuracy"] for c in cells)))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def evaluate(predictor: Any, boxes: str = "proposals", limit: int | None = None, batch_size: int = 32) -> Result:
    """Let a predictor answer the held-out questions.

    Args:
        predictor: A ``mg_llava.inference.Predictor``.
        boxes: ``proposals`` (what the offline proposal step found), ``exact`` or ``none``.
        limit: Number of pictures; None for all.
        batch_size: Questions at a time.
    """
    from mg_llava.data.box_store import BoxStore
    from mg_llava.inference import Request

    questions = load_questions(limit=limit)
    file = BOX_FILES[boxes]
    store = BoxStore.from_json(GENERATED / file) if file else None
    requests = [
        Request(
            question["question"],
            GENERATED / "images" / question["image"],
            store.get(question["id"]) if store else [],
            question["id"],
        )
        for question in questions
    ]
    answers = predictor.predict_many(
        requests, batch_size, progress=lambda done, total: print(f"{done}/{total}", flush=True)
    )
    return score(questions, [answer.text for answer in answers], load_chance())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of the training")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the training wrote")
    parser.add_argument("--boxes", choices=sorted(BOX_FILES), default="proposals", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="number of held-out pictures (default: all)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write the result, with every answer, to this JSON file")
    arguments = parser.parse_args()
    config, checkpoint, out = (
        path and path.resolve() for path in (arguments.config, arguments.checkpoint, arguments.out)
    )
    os.chdir(ROOT)  # the configs' paths are relative to it
    sys.path.insert(0, str(ROOT))
    from mg_llava.inference import Predictor

    start = time.monotonic()
    try:
        predictor = Predictor.from_config(config, checkpoint, arguments.device, max_new_tokens=24)
        result = evaluate(predictor, arguments.boxes, arguments.limit, arguments.batch_size)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    result |= {
        "config": str(arguments.config),
        "checkpoint": str(arguments.checkpoint),
        "boxes": arguments.boxes,
        "seconds": round(time.monotonic() - start, 1),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(format_table({"accuracy, %": result}))


if __name__ == "__main__":
    main()
