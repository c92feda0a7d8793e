"""Probability of the right digit's token with and without coordinates in the question, over the held-out questions.

Examples:
    python data/nano/grounding_probability.py CONFIG.py --checkpoint FILE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import grounding  # noqa: E402
from grounding_benchmark import load_lines, open_config  # noqa: E402

from mg_llava.inference import Predictor, Request  # noqa: E402
from mg_llava.inference.explaining import read_answer  # noqa: E402
from mg_llava.tokens import BOX_PLACEHOLDER  # noqa: E402

PLAIN = {"C->T": "Which digit is in the picture?", "C+I->T": "Which digit is <object:{}>?"}
"""The question without coordinates, by the kind of the one with them."""


def read_all(predictor: Predictor, lines: list[dict[str, Any]], images: Path, kind: str) -> np.ndarray:
    """Probabilities (n, 2) of the right answer without and with coordinates."""
    found = []
    for line in lines:
        if line["kind"] == kind:
            plain = PLAIN[kind].format(*BOX_PLACEHOLDER.findall(line["question"]))
            asked = [
                Request(text, images / line["image"], objects=line["objects"]) for text in (plain, line["question"])
            ]
            found.append([read_answer(predictor, one, line["answer"]).mean_probability for one in asked])
    return np.array(found)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of the training")
    parser.add_argument("--checkpoint", required=True, help="its checkpoint")
    parser.add_argument("--data", type=Path, default=grounding.OUT, help="default: data/nano/generated/grounding")
    arguments = parser.parse_args()
    predictor = Predictor.from_pretrained(open_config(arguments.config), arguments.checkpoint, "cpu")
    lines = load_lines([arguments.data / "heldout.jsonl"])
    for kind in PLAIN:
        found = read_all(predictor, lines, arguments.data / "images", kind)
        without, given = found.mean(axis=0)
        more = (found[:, 1] > found[:, 0]).mean()
        print(f"{kind}: {without:.3f} without coordinates, {given:.3f} with; higher in {more:.0%} of {len(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
