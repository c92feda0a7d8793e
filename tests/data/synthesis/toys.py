"""Small annotations in the very formats of the published sets, with pictures."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (160, 120)
PLACES = [[4, 6, 40, 40], [60, 8, 36, 50], [110, 20, 44, 60], [10, 70, 30, 44], [70, 66, 50, 48]]
"""Boxes xywh that lie apart."""
CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 17, "name": "cat", "supercategory": "animal"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
]
TEST_SPLITS = ("val", "testA", "testB")


class Python2Pickler(pickle._Pickler):
    """Writes texts as the byte strings of Python 2."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, text: str) -> None:
        data = text.encode()
        self.write(b"U" + bytes([len(data)]) + data)
        self.memoize(text)

    dispatch[str] = save_str


def write_picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, format="PNG")
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def instances(images: Sequence[int], names: str, boxes: Sequence[Sequence[float]] = PLACES) -> dict[str, Any]:
    """COCO's format: every picture has all boxes, with categories in turn, and one group of toothbrushes."""
    entries = []
    for image in images:
        for number, box in enumerate(boxes):
            category = CATEGORIES[(image + number) % 3]["id"]
            entries.append(
                {
                    "id": image * 100 + number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": list(box),
                    "iscrowd": 0,
                    "area": box[2] * box[3],
                    "segmentation": [[0, 0, 1, 1, 2, 2]],
                }
            )
    crowd = {"id": 7, "image_id": images[0], "category_id": 90, "bbox": [0, 0, 99, 99], "iscrowd": 1}
    pictures = [
        {"id": image, "file_name": names.format(image), "width": SIZE[0], "height": SIZE[1]} for image in images
    ]
    return {"images": pictures, "annotations": [*entries, {**crowd, "segmentation": {}}], "categories": CATEGORIES}


def write_refcoco(
    folder: Path, pictures: Path, images: Sequence[int] = range(1, 13), file: str = "refs(unc).p"
) -> Path:
    """Every fourth picture is of a test split; the first object has two sentences, the second one."""
    names = "COCO_train2014_{:012d}.jpg"
    write_json(folder / "instances.json", instances(images, names))
    refs = []
    for place, image in enumerate(images):
        write_picture(pictures / names.format(image), image)
        for number, sentences in enumerate((["left café", "the one on the left"], ["thing near the top"])):
            said = [{"raw": s, "sent": s, "sent_id": i, "tokens": s.split()} for i, s in enumerate(sentences)]
            refs.append(
                {
                    "ref_id": image * 10 + number,
                    "ann_id": image * 100 + number,
                    "category_id": 1,
                    "image_id": image,
                    "file_name": names.format(image),
                    "split": TEST_SPLITS[place // 4 % 3] if place % 4 == 3 else "train",
                    "sent_ids": [0],
                    "sentences": said,
                }
            )
    with (folder / file).open("wb") as stream:
        Python2Pickler(stream, 2).dump(refs)
    return folder


def write_visual_genome(folder: Path, pictures: Path, coco_id: int | None = None) -> Path:
    """Pictures in two folders; the second is COCO's ``coco_id``."""
    about, regions, relations = [], [], []
    for number in range(1, 9):
        part = "VG_100K" if number % 2 else "VG_100K_2"
        write_picture(pictures / part / f"{number}.jpg", 1000 + number)
        url = f"https://cs.stanford.edu/people/rak248/{part}/{number}.jpg"
        coco = coco_id if number == 2 else None
        about.append({"image_id": number, "url": url, "width": SIZE[0], "height": SIZE[1], "coco_id": coco})
        phrases = ["a red kite", "boy in a blue shirt", "tall green tree", "a red kite", "the grass"]
        found = [
            dict(
                region_id=i,
                image_id=number,
                phrase=phrase,
                **dict(zip(("x", "y", "width", "height"), box, strict=True)),
            )
            for i, (phrase, box) in enumerate(zip(phrases, PLACES, strict=True))
        ]
        found.append(dict(region_id=9, image_id=number, phrase="nothing", x=500, y=500, width=20, height=20))
        found.append(dict(region_id=10, image_id=number, phrase="a point", x=5, y=5, width=0, height=0))
        regions.append({"id": number, "regions": found})
        things = [
            dict(zip(("x", "y", "w", "h"), box, strict=True), object_id=i, **name)
            for i, (box, name) in enumerate(
                zip(PLACES, ({"name": "man"}, {"names": ["horse"]}, {"name": "hat"}, {"name": "fence"}), strict=False)
            )
        ]
        links = [("riding", 0, 1), ("WEARING", 0, 2), ("near", 1, 3), ("near", 1, 2)]
        relations.append(
            {
                "image_id": number,
                "relationships": [
                    {"predicate": word, "subject": things[a], "object": things[b], "relationship_id": i, "synsets": []}
                    for i, (word, a, b) in enumerate(links)
                ],
            }
        )
    write_json(folder / "image_data.json", about)
    write_json(folder / "region_descriptions.json", regions)
    write_json(folder / "relationships.json", relations)
    return folder


SENTENCES = (
    "[/EN#10/people A tall man] with [/EN#11/bodyparts brown hair] holds [/EN#12/other a red bag] .",
    "[/EN#10/people A man] stands near [/EN#13/people two children] under [/EN#0/notvisual the idea] .",
)
ENTITY = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_flickr30k(folder: Path, pictures: Path) -> Path:
    """Eight pictures for training, two for tests; chain 13 has two boxes, chain 11 none."""
    names = [str(1000 + number) for number in range(10)]
    for number, name in enumerate(names):
        write_picture(pictures / f"{name}.jpg", 2000 + number)
        (folder / "Sentences").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        (folder / "Sentences" / f"{name}.txt").write_text("\n".join(SENTENCES) + "\n")
        corners = [[x, y, x + w, y + h] for x, y, w, h in PLACES]
        entities = [ENTITY.format(chain, *corners[place]) for chain, place in ((10, 0), (12, 1), (13, 2), (13, 3))]
        entities.append("<object><name>11</name><scene>0</scene><nobndbox>1</nobndbox></object>")
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(entities)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    for split, part in (("train", names[:8]), ("val", names[8:9]), ("test", names[9:])):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return folder


def write_coco(file: Path, pictures: Path, images: Sequence[int] = range(501, 509)) -> Path:
    for image in images:
        write_picture(pictures / f"{image:012d}.jpg", 3000 + image)
    return write_json(file, instances(images, "{:012d}.jpg"))


def write_boxes(folder: Path, pictures: Path, planted: Path | None = None) -> tuple[Path, Path]:
    """Boxes of five labels and records with captions; ``planted`` comes under another name."""
    labels = ["dog", "bench", "tree", "dog", "bicycle"]
    boxes, records = [], []
    for number in range(6):
        file = pictures / f"holiday_{number}.png"
        if number == 5 and planted is not None:
            Image.open(planted).convert("RGBA").save(file)
        else:
            write_picture(file, 4000 + number)
        name = f"r{number}"
        corners = [[x, y, x + w, y + h] for x, y, w, h in PLACES]
        boxes.append({"id": name, "boxes": corners, "scores": [0.9, 0.8, 0.7, 0.6, 0.2], "labels": labels})
        turns = [("human", "<image>\nDescribe."), ("gpt", "There is a bench below a large tree in the park.")]
        turns += [("human", "And else?"), ("gpt", "Nothing else is to be seen.")] if number == 0 else []
        record = {"id": name, "image": file.name, "conversations": [{"from": a, "value": b} for a, b in turns]}
        records.append(record)
    return write_json(folder / "boxes.json", boxes), write_json(folder / "records.json", records)
