"""Scenes with a law, the digits ascend from left to right, for MR-MLLM: its detector, records and held-out pictures.

The detector is trained on clean pictures of scenes without the law, in seconds, into data/nano/detector. Records have
captions, places and questions; box files what the detector finds (``PART_detected.json``) and what is there
(``PART_exact.json``).

Examples:
    python data/nano/lawful.py
    python data/nano/lawful.py --stage1 64 --stage2 64 --heldout 16 --out /tmp/small
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import language  # noqa: E402
import made  # noqa: E402
import scenes  # noqa: E402

from mg_llava.models.encoders.cell_detector import CellDetector, CellHead  # noqa: E402
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder  # noqa: E402
from mg_llava.models.interfaces import Detected  # noqa: E402

FORMAT = 2
CLASSES = [*map(str, range(10)), "shape"]
WIDTH = 128
SIZES = {"stage1": 1200, "stage2": 1200, "heldout": 160}
"""Pictures of each part."""
FITTED = 100
"""Pictures on which the LLM's weight beside the detector is fitted."""
KINDS = ("list", "count", "presence", "leftmost")
"""Questions that the names of the objects answer."""
Record = dict[str, Any]


def ascend(layout: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """A layout whose digits change places, so that they ascend from left to right."""
    digits = sorted(item[0] for item in layout if item[0] >= 0)
    columns = sorted(item[2] for item in layout if item[0] >= 0)
    order = dict(zip(columns, digits, strict=True))  # at most one digit in a column
    return [(order[item[2]], *item[1:]) if item[0] >= 0 else item for item in layout]


def sample_lawful(rng: np.random.Generator, rows: list[int], columns: list[int]) -> list[tuple[int, int, int, int]]:
    """A layout with the law; see ``scenes.sample_layout``."""
    return ascend(scenes.sample_layout(rng, rows, columns))


def name_of(mark: scenes.Mark) -> str:
    """Name of a mark's class."""
    return str(mark.digit) if mark.digit >= 0 else "shape"


def train_detector(folder: Path, pictures: int, seed: int) -> None:
    """Train the head on the cells of clean pictures, whose digits follow no law; cross-entropy and L1."""
    torch.manual_seed(seed)
    rng, backbone = np.random.default_rng(seed), HERE / "convnext"
    encoder = OpenCLIPConvNeXtEncoder(str(backbone), scenes.CANVAS, dtype="float32")
    maps, targets = [], []
    for _ in range(pictures):
        scene = scenes.draw_scene(rng, "train")
        canvas, boxes = scenes.to_canvas(scene)
        with torch.no_grad():
            maps.append(encoder(torch.from_numpy(canvas.copy()).permute(2, 0, 1)[None]).maps[-1])
        targets.append(cell_targets(scene, boxes))
    cells, wanted = torch.cat(maps), torch.stack(targets)  # (N, C, g, g), (N, g * g, 5)
    head = CellHead(cells.shape[1], WIDTH, len(CLASSES) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.01)
    steps = 900
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        chosen = torch.randint(len(cells), (32,))
        loss = detector_loss(head, cells[chosen], wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_detector(head, folder, backbone)
    print(f"detector: {pictures} pictures, loss {loss.item():.3f}, into {folder}", flush=True)


def cell_targets(scene: scenes.Scene, boxes: np.ndarray) -> Tensor:
    """``(g * g, 5)``: class of each cell, and the box in it, cxcywh shares of the canvas."""
    wanted = torch.zeros(scenes.GRID**2, 5)
    wanted[:, 0] = len(CLASSES)
    for mark, box in zip(scene.marks, torch.from_numpy(boxes), strict=True):
        center = torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / scenes.CANVAS
        column, row = (center[:2] * scenes.GRID).long().tolist()
        place = row * scenes.GRID + column
        wanted[place] = torch.cat([torch.tensor([float(CLASSES.index(name_of(mark)))]), center])
    return wanted


def detector_loss(head: CellHead, cells: Tensor, wanted: Tensor) -> Tensor:
    """Of classes in all cells, and of boxes where there is a mark."""
    _, logits, boxes = head(cells)
    classes = wanted[..., 0].long()
    there = classes < len(CLASSES)
    of_classes = F.cross_entropy(logits.flatten(0, 1), classes.flatten())
    return of_classes + 20 * (boxes[there] - wanted[there][:, 1:]).abs().mean()


def save_detector(head: CellHead, folder: Path, backbone: Path) -> None:
    """Write the folder of a ``CellDetector``, weights in half precision."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    place = Path("..") / backbone.name if folder.parent == backbone.parent else backbone
    about = {"backbone": str(place), "classes": CLASSES, "width": WIDTH}
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    save_file({name: value.half() for name, value in head.state_dict().items()}, folder / "model.safetensors")


def objects_of(scene: scenes.Scene) -> Record:
    """Box record of what is there."""
    boxes = [[float(value) for value in mark.box] for mark in scene.marks]
    return {"boxes": boxes, "scores": [1.0] * len(boxes), "labels": [name_of(mark) for mark in scene.marks]}


@torch.no_grad()
def detect(detector: CellDetector, scene: scenes.Scene, threshold: float = 0.05) -> Record:
    """Box record of what the detector finds, in original pixels."""
    canvas, _ = scenes.to_canvas(scene)
    found = detector(torch.from_numpy(canvas.copy()).permute(2, 0, 1)[None]).detected
    assert found is not None
    return box_record(found, detector.spec.classes, scenes.Frame(*scene.image.size), threshold)


def box_record(found: Detected, classes: tuple[str, ...], frame: scenes.Frame, threshold: float) -> Record:
    """Objects of one canvas as a box record; centers and sides become corners, shares original pixels."""
    kept = found.scores[0] >= threshold
    centers, sides = found.boxes[0, kept].split(2, dim=1)
    corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=1) * scenes.CANVAS / frame.scale
    corners -= torch.tensor(frame.offset * 2)
    labels = [classes[number] for number in found.logits[0, kept][:, : len(classes)].argmax(1).tolist()]
    return {"boxes": corners.tolist(), "scores": found.scores[0, kept].tolist(), "labels": labels}


def conversation(rng: np.random.Generator, layout: language.Layout, part: str) -> list[dict[str, str]]:
    """A caption and detection as text for stage A; questions and detection for stage B."""
    detection = (language.WHERE_PROMPT, language.where(layout))
    if part == "stage1":
        pairs = [(language.caption_prompt(rng), language.caption(layout)), detection]
    else:
        asked = [language.ask(rng, layout, str(kind)) for kind in rng.permutation(KINDS)[:3]]
        pairs = [(one.question, one.answer) for one in asked] + [detection]
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": question if number else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    return turns


class Part:
    """Pictures of one part with their records and boxes."""

    def __init__(self, out: Path, name: str, split: scenes.Split, seed: int, detector: CellDetector) -> None:
        self.out, self.name, self.split, self.detector = out, name, split, detector
        self.rng = np.random.default_rng(seed)
        self.records: list[Record] = []
        self.pictures: list[Record] = []
        self.boxes: dict[str, list[Record]] = {"exact": [], "detected": []}
        (out / "images" / name).mkdir(parents=True, exist_ok=True)

    def add(self, index: int) -> None:
        """Draw a picture and write its records."""
        scene = scenes.draw_scene(self.rng, self.split, sample_lawful)
        place, identifier = f"{self.name}/{index:05d}.png", f"{self.name}-{index:05d}"
        scene.image.save(self.out / "images" / place)
        layout = [(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks]
        if self.split == "train":
            turns = conversation(self.rng, layout, self.name)
            self.records.append({"id": identifier, "image": place, "conversations": turns})
        else:
            for kind in KINDS:
                asked = language.ask(self.rng, layout, kind)
                line = {"id": f"{identifier}-{kind}", "picture": identifier, "image": place, "kind": kind}
                self.records.append(line | {"question": asked.question, "answer": asked.answer})
        self.boxes["exact"].append({"id": identifier, **objects_of(scene)})
        self.boxes["detected"].append({"id": identifier, **detect(self.detector, scene)})
        size = dict(zip(("width", "height"), scene.image.size, strict=True))
        self.pictures.append({"id": index, "file_name": place, **size})

    def write(self) -> None:
        """Write records and box files."""
        for kind, records in self.boxes.items():
            (self.out / f"{self.name}_{kind}.json").write_text(json.dumps(records))
        if self.split == "train":
            (self.out / f"{self.name}.json").write_text(json.dumps(self.records))
        else:
            (self.out / f"{self.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.records))
            (self.out / f"{self.name}_instances.json").write_text(json.dumps(self.instances()))

    def instances(self) -> Record:
        """What is there, as COCO's annotations."""
        annotations: list[Record] = []
        for index, record in enumerate(self.boxes["exact"]):
            for (x1, y1, x2, y2), label in zip(record["boxes"], record["labels"], strict=True):
                place = {"id": len(annotations) + 1, "image_id": index, "category_id": 1 + CLASSES.index(label)}
                shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                annotations.append({**place, **shape})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        return {"images": self.pictures, "annotations": annotations, "categories": categories}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stage1", type=int, default=SIZES["stage1"], help="pictures of stage A (default: %(default)s)"
    )
    parser.add_argument(
        "--stage2", type=int, default=SIZES["stage2"], help="pictures of stage B (default: %(default)s)"
    )
    parser.add_argument(
        "--heldout", type=int, default=SIZES["heldout"], help="held-out pictures (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--detector", type=int, default=480, help="pictures of the detector (default: %(default)s)")
    parser.add_argument("--retrain", action="store_true", help="train the detector again")
    parser.add_argument("--out", type=Path, default=HERE / "lawful", help="default: data/nano/lawful")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("stage1", "stage2", "heldout")}
    prepare(arguments.out, sizes, arguments.seed, arguments.detector, arguments.retrain)


def prepare(
    out: Path = HERE / "lawful",
    sizes: Mapping[str, int] = SIZES,
    seed: int = 0,
    pictures: int = 480,
    retrain: bool = False,
) -> None:
    """Make detector and data, or see that they are there."""
    folder = HERE / "detector"
    if retrain or not (folder / "model.safetensors").is_file():
        train_detector(folder, pictures, seed)
    settings = {"format": FORMAT, "seed": seed, **sizes}
    if made.is_made(out, settings):
        return
    detector = CellDetector(str(folder), scenes.CANVAS, dtype="float32")
    for number, (name, count) in enumerate({**sizes, "fit": FITTED}.items()):
        split: scenes.Split = "heldout" if name in ("heldout", "fit") else "train"
        part = Part(out, name, split, 1000 * seed + 11 + number, detector)
        for index in range(count):
            part.add(index)
        part.write()
    made.finish(out, settings)
    print(f"wrote {', '.join(f'{count} of {name}' for name, count in sizes.items())} to {out}")


if __name__ == "__main__":
    main()
