"""Make the pictures, questions and boxes of the miniature, seeded, into data/nano/generated/.

Writes pictures of two training stages and of a held-out set (digits and backgrounds of which training never sees),
LLaVA-format records, boxes by record id (from the offline proposal step, and exact ones), and the held-out questions,
these also as an MMBench table and as POPE's files. Does nothing when the folder already holds the data of the same
settings.

Examples:
    python data/nano/make_data.py
    python data/nano/make_data.py --stage1 64 --stage2 64 --heldout 16 --out /tmp/small
    python data/nano/make_data.py --proposal-recall      # only measure how many digits the proposal step finds
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language
import numpy as np
import scenes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import benchmarks  # noqa: E402

from mg_llava.detection.proposals import ConnectedComponentProposals, Proposals  # noqa: E402

FORMAT = 3
TURNS = 4
TEXT_ONLY_SHARE = 0.04
Record = dict[str, Any]


class Writer:
    """Draws pictures of one part, writes them and collects their boxes by record id."""

    def __init__(self, out: Path, part: str, split: scenes.Split, seed: int):
        self.folder, self.part, self.split = out / "images" / part, part, split
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rng = np.random.default_rng(seed)
        self.propose = ConnectedComponentProposals()
        self.boxes: list[Record] = []
        self.exact_boxes: list[Record] = []

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
            self.boxes.append(_box_record(identifier, found))
            self.exact_boxes.append(_box_record(identifier, exact))


def _box_record(identifier: str, found: Proposals) -> Record:
    boxes = [[round(float(side), 2) for side in box] for box in found.boxes]
    return {"id": identifier, "boxes": boxes, "scores": [round(s, 4) for s in found.scores], "labels": found.labels}


def _turns(pairs: list[tuple[str, str]], picture: bool) -> list[Record]:
    conversation = []
    for index, (question, answer) in enumerate(pairs):
        start = "<image>\n" if picture and index == 0 else ""
        conversation.append({"from": "human", "value": start + question})
        conversation.append({"from": "gpt", "value": answer})
    return conversation


def make_stage1(out: Path, count: int, seed: int) -> None:
    """Captions, two per picture."""
    writer = Writer(out, "stage1", "train", seed + 1)
    records = []
    for index in range(count):
        name, scene, layout = writer.picture(index)
        identifier = f"stage1-{index:05d}"
        pairs = [
            (language.caption_prompt(writer.rng), language.caption(layout)),
            (language.WHERE_PROMPT, language.where(layout)),
        ]
        records.append({"id": identifier, "image": name, "conversations": _turns(pairs, True)})
        writer.add_boxes([identifier], scene)
    _write_part(out, "stage1", records, writer)


def make_stage2(out: Path, count: int, seed: int) -> None:
    """Instructions: several questions per picture, and some records without a picture."""
    writer = Writer(out, "stage2", "train", seed + 2)
    records = []
    for index in range(count):
        identifier = f"stage2-{index:05d}"
        if writer.rng.random() < TEXT_ONLY_SHARE:
            asked = [language.ask_text_only(writer.rng) for _ in range(TURNS)]
            conversation = _turns([(q.question, q.answer) for q in asked], False)
            records.append({"id": identifier, "conversations": conversation})
            continue
        name, scene, layout = writer.picture(index)
        kinds = writer.rng.permutation(language.KINDS)[:TURNS]
        asked = [language.ask(writer.rng, layout, str(kind)) for kind in kinds]
        conversation = _turns([(q.question, q.answer) for q in asked], True)
        records.append({"id": identifier, "image": name, "conversations": conversation})
        writer.add_boxes([identifier], scene)
    _write_part(out, "stage2", records, writer)


def make_heldout(out: Path, count: int, seed: int) -> None:
    """One question of every kind per held-out picture, as JSON lines."""
    writer = Writer(out, "heldout", "heldout", seed + 3)
    lines = []
    for index in range(count):
        name, scene, layout = writer.picture(index)
        picture = f"heldout-{index:05d}"
        asked = [language.ask(writer.rng, layout, kind) for kind in language.KINDS]
        for question in asked:
            line = {
                "id": f"{picture}-{question.kind}",
                "picture": picture,
                "image": name,
                "question": question.question,
            }
            lines.append(line | {"answer": question.answer, "kind": question.kind})
        writer.add_boxes([picture, *(f"{picture}-{question.kind}" for question in asked)], scene)
    _write_boxes(out, "heldout", writer)
    (out / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_part(out: Path, part: str, records: list[Record], writer: Writer) -> None:
    _write_boxes(out, part, writer)
    (out / f"{part}.json").write_text(json.dumps(records))


def _write_boxes(out: Path, part: str, writer: Writer) -> None:
    (out / f"{part}_boxes.json").write_text(json.dumps(writer.boxes))
    (out / f"{part}_exact_boxes.json").write_text(json.dumps(writer.exact_boxes))


def proposal_recall(split: scenes.Split, count: int, seed: int) -> float:
    """Share of the digits that some proposed box covers with an IoU of at least 0.5."""
    rng, propose, hits = np.random.default_rng(seed), ConnectedComponentProposals(), []
    for _ in range(count):
        scene = scenes.draw_scene(rng, split)
        boxes = propose(scene.image).boxes
        hits += [max((_iou(mark.box, box) for box in boxes), default=0.0) >= 0.5 for mark in scene.digits]
    return float(np.mean(hits))


def _iou(first: tuple[float, ...], second: np.ndarray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def settings_fingerprint(arguments: argparse.Namespace) -> str:
    """Changes with the sizes, the seed, and the code that makes the data."""
    digest = hashlib.sha256(
        f"{FORMAT} {arguments.stage1} {arguments.stage2} {arguments.heldout} {arguments.seed}".encode()
    )
    detector = Path(sys.modules["mg_llava.detection.proposals"].__file__ or "")
    for source in (HERE / "scenes.py", HERE / "language.py", Path(__file__), detector):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _is_there(meta: Path, fingerprint: str) -> bool:
    return meta.is_file() and json.loads(meta.read_text()).get("fingerprint") == fingerprint


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage1", type=int, default=2400, help="pictures of stage 1 (default: %(default)s)")
    parser.add_argument("--stage2", type=int, default=4000, help="records of stage 2 (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=160, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "generated", help="default: data/nano/generated")
    parser.add_argument("--force", action="store_true", help="make the data even if it is there")
    parser.add_argument("--proposal-recall", action="store_true", help="only measure the proposal step")
    arguments = parser.parse_args()
    if arguments.proposal_recall:
        recall = proposal_recall("heldout", arguments.heldout, arguments.seed + 3)
        print(f"digits found at IoU 0.5 in {arguments.heldout} held-out pictures: {100 * recall:.1f} %")
        return
    out, fingerprint = arguments.out, settings_fingerprint(arguments)
    if _is_there(out / "meta.json", fingerprint) and not arguments.force:
        if not benchmarks.are_there(out):
            benchmarks.write_benchmark_files(out)
        print(f"{out} already holds this data; nothing to do (--force makes it again)")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "meta.json").unlink(missing_ok=True)
    parts: list[tuple[Callable[[Path, int, int], None], int]] = [
        (make_heldout, arguments.heldout),
        (make_stage1, arguments.stage1),
        (make_stage2, arguments.stage2),
    ]
    for make, count in parts:
        make(out, count, arguments.seed * 1000)
    benchmarks.write_benchmark_files(out)
    meta = {"fingerprint": fingerprint, "seed": arguments.seed, "kinds": language.KINDS, "chance": language.CHANCE}
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    sizes = f"{arguments.stage1} + {arguments.stage2} training records and {arguments.heldout} held-out pictures"
    print(f"wrote {sizes} to {out}")


if __name__ == "__main__":
    main()
