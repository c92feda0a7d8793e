"""Make the pictures, questions and boxes of the miniature, seeded, into data/nano/generated/.

Writes pictures of two training stages and of a held-out set (digits and backgrounds of which training never sees),
LLaVA-format records, boxes by record id (from the offline proposal step, and exact ones), and the held-out questions,
these also as an MMBench table and as POPE's files. Does nothing when the folder already holds the data of the same
settings.

Examples:
    python data/nano/make_data.py
    python data/nano/make_data.py --stage1 64 --stage2 64 --heldout 16 --out /tmp/small
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import language
import made
import numpy as np
import scenes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import benchmarks  # noqa: E402

from mg_llava.detection.proposals import ConnectedComponentProposals, Proposals  # noqa: E402
from mg_llava.work.pool import available_cores, run_jobs  # noqa: E402

FORMAT = 4
"""Changes with the data; folders of another one are made again."""
TURNS = 4
TEXT_ONLY_SHARE = 0.04
FEW = 500
"""Pictures that are made before processes for them have started."""
Record = dict[str, Any]
Pairs = list[tuple[str, str]]


class Writer:
    """Draws pictures of one part, writes them and collects their boxes by record id."""

    def __init__(self, out: Path, part: str, split: scenes.Split, seed: int):
        self.folder, self.part, self.split = out / "images" / part, part, split
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rng = np.random.default_rng(seed)
        self.propose = ConnectedComponentProposals()
        self.boxes: dict[str, list[Record]] = {"boxes": [], "exact_boxes": []}

    def picture(self, index: int) -> tuple[str, scenes.Scene, language.Layout]:
        """Draw and write one picture; returns its path relative to the image folder, the scene and its layout."""
        scene = scenes.draw_scene(self.rng, self.split)
        name = f"{self.part}/{index:05d}.jpg"
        scene.image.save(self.folder.parent / name, quality=95, subsampling=0)
        layout = [(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks]
        return name, scene, layout

    def add_boxes(self, ids: list[str], scene: scenes.Scene) -> None:
        """Boxes of a picture for every record that shows it."""
        found = self.propose(scene.image)
        exact = Proposals(
            np.array([mark.box for mark in scene.marks], np.float64).reshape(-1, 4),
            [1.0] * len(scene.marks),
            [str(mark.digit) if mark.digit >= 0 else "shape" for mark in scene.marks],
        )
        for identifier in ids:
            self.boxes["boxes"].append(_box_record(identifier, found))
            self.boxes["exact_boxes"].append(_box_record(identifier, exact))

    def write_boxes(self) -> None:
        """Write both kinds of boxes beside the records."""
        for kind, records in self.boxes.items():
            (self.folder.parents[1] / f"{self.part}_{kind}.json").write_text(json.dumps(records))


def _box_record(identifier: str, found: Proposals) -> Record:
    boxes = [[round(float(side), 2) for side in box] for box in found.boxes]
    return {"id": identifier, "boxes": boxes, "scores": [round(s, 4) for s in found.scores], "labels": found.labels}


def _turns(pairs: Pairs, picture: bool) -> list[Record]:
    conversation = []
    for index, (question, answer) in enumerate(pairs):
        start = "<image>\n" if picture and index == 0 else ""
        conversation += [{"from": "human", "value": start + question}, {"from": "gpt", "value": answer}]
    return conversation


def _captions(rng: np.random.Generator, layout: language.Layout) -> Pairs:
    """Two captions, for stage 1."""
    return [
        (language.caption_prompt(rng), language.caption(layout)),
        (language.WHERE_PROMPT, language.where(layout)),
    ]


def _instructions(rng: np.random.Generator, layout: language.Layout) -> Pairs:
    """Questions of several kinds, for stage 2."""
    kinds = rng.permutation(language.KINDS)[:TURNS]
    asked = [language.ask(rng, layout, str(kind)) for kind in kinds]
    return [(question.question, question.answer) for question in asked]


def make_training(out: Path, part: str, count: int, seed: int) -> None:
    """Records of a stage; stage 2 has some without a picture."""
    writer, records = Writer(out, part, "train", seed), []
    for index in range(count):
        identifier = f"{part}-{index:05d}"
        if part == "stage2" and writer.rng.random() < TEXT_ONLY_SHARE:
            asked = [language.ask_text_only(writer.rng) for _ in range(TURNS)]
            pairs = [(question.question, question.answer) for question in asked]
            records.append({"id": identifier, "conversations": _turns(pairs, False)})
            continue
        name, scene, layout = writer.picture(index)
        pairs = (_captions if part == "stage1" else _instructions)(writer.rng, layout)
        records.append({"id": identifier, "image": name, "conversations": _turns(pairs, True)})
        writer.add_boxes([identifier], scene)
    writer.write_boxes()
    (out / f"{part}.json").write_text(json.dumps(records))


def make_heldout(out: Path, count: int, seed: int) -> None:
    """One question of every kind per held-out picture, as JSON lines."""
    writer, lines = Writer(out, "heldout", "heldout", seed), []
    for index in range(count):
        name, scene, layout = writer.picture(index)
        picture = f"heldout-{index:05d}"
        for kind in language.KINDS:
            asked = language.ask(writer.rng, layout, kind)
            line = {"id": f"{picture}-{kind}", "picture": picture, "image": name, "question": asked.question}
            lines.append(line | {"answer": asked.answer, "kind": kind})
        writer.add_boxes([picture, *(f"{picture}-{kind}" for kind in language.KINDS)], scene)
    writer.write_boxes()
    (out / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_part(out: Path, job: tuple[str, int, int]) -> None:
    """A part by its name, the number of its pictures or records, and its seed."""
    part, count, seed = job
    if part == "heldout":
        make_heldout(out, count, seed)
    else:
        make_training(out, part, count, seed)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage1", type=int, default=2400, help="pictures of stage 1 (default: %(default)s)")
    parser.add_argument("--stage2", type=int, default=4000, help="records of stage 2 (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=160, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "generated", help="default: data/nano/generated")
    parser.add_argument("--force", action="store_true", help="make the data even if it is there")
    arguments = parser.parse_args()
    out = arguments.out
    sizes = {part: getattr(arguments, part) for part in ("stage1", "stage2", "heldout")}
    settings = {"format": FORMAT, "seed": arguments.seed, **sizes}
    if made.is_made(out, settings, arguments.force):
        return
    seed = arguments.seed * 1000
    jobs = [("stage2", arguments.stage2, seed + 2), ("stage1", arguments.stage1, seed + 1)]
    jobs.append(("heldout", arguments.heldout, seed + 3))
    workers = 1 if sum(sizes.values()) < FEW else min(len(jobs), available_cores())
    for _ in run_jobs(make_part, jobs, out, workers):
        pass
    benchmarks.write_benchmark_files(out)
    made.finish(out, settings)
    told = f"{arguments.stage1} + {arguments.stage2} training records and {arguments.heldout} held-out pictures"
    print(f"wrote {told} to {out}")


if __name__ == "__main__":
    main()
