"""A folder of deliberately broken data: every fault there is, each in a record whose id says which."""

import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests import toy
from tests.settings import grouped

MAX_LENGTH = 48
"""Too short for the text of one record, and for the pictures of another."""

SIZE = (60, 40)
BOXES = [[4, 6, 20, 30], [10, 10, 38, 34]]


@dataclass
class BrokenData:
    """Paths, as ``LLaVADataset`` takes them, and the ids that have each kind of finding of the doctor."""

    folder: Path
    expected: dict[str, set[str]] = field(default_factory=dict)

    def arguments(self, **changes: object) -> dict:
        """Settings of a data set with policies that skip what can be skipped."""
        settings: dict = {
            "type": "mg_llava.LLaVADataset",
            "data_path": str(self.folder / "records.json"),
            "image_folder": str(self.folder / "images"),
            "box_path": str(self.folder / "boxes.json"),
            "tokenizer": {"pretrained_model_name_or_path": str(self.folder / "llm")},
            "template": "vicuna",
            "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": 64},
            "max_length": MAX_LENGTH,
            "missing_box": "empty",
            "bad_box_record": "drop",
            "bad_image": "skip",
            "no_label": "skip",
        }
        return grouped(**{**settings, **changes})

    def evaluation(self) -> str:
        """Folder with evaluation pictures; one is also a training picture."""
        return str(self.folder / "evaluation")


def write_clean(folder: Path, records: int = 6) -> BrokenData:
    """The same without any fault."""
    data = BrokenData(folder)
    writer = _Writer(data)
    for number in range(records):
        writer.picture_record(f"good_{number}", _png(_photo(number)), "png")
    writer.text_record("good_text")
    writer.finish()
    return data


def write_broken(folder: Path, with_refused: bool = True) -> BrokenData:
    """Write pictures, ``records.json``, ``boxes.json``, a tokenizer and evaluation pictures.

    Args:
        folder: Where to.
        with_refused: Whether there are records that a data set refuses at the start, whatever its policies are.
    """
    data = BrokenData(folder)
    writer = _Writer(data)
    for number in range(3):
        writer.picture_record(f"good_{number}", _png(_photo(number)), "png")
    writer.text_record("good_text")
    _add_pictures(writer)
    _add_boxes(writer)
    _add_texts(writer)
    _add_values(writer)
    _add_turns(writer)
    if with_refused:
        _add_refused(writer)
    writer.finish()
    return data


class _Writer:
    def __init__(self, data: BrokenData) -> None:
        self.data = data
        self.images = data.folder / "images"
        self.images.mkdir(parents=True)
        (data.folder / "evaluation").mkdir()
        self.records: list = []
        self.boxes: list = []

    def expect(self, kind: str, record_id: str) -> None:
        self.data.expected.setdefault(kind, set()).add(record_id)

    def picture_record(self, record_id: str, content: bytes | None, suffix: str, *kinds: str, boxes: object = BOXES):
        """A record with a picture; ``content`` None for no file, ``boxes`` None for no box record."""
        name = f"{record_id}.{suffix}"
        if content is not None:
            (self.images / name).write_bytes(content)
        self.records.append({"id": record_id, "image": name, "conversations": _turns("<image>\nwhat?", "a digit")})
        self.box_record(record_id, boxes)
        for kind in kinds:
            self.expect(kind, record_id)

    def box_record(self, key: str, boxes: object) -> None:
        if isinstance(boxes, list):
            boxes = {"boxes": boxes, "scores": [0.9] * len(boxes), "labels": [f"label {i}" for i in range(len(boxes))]}
        if boxes is not None:
            self.boxes.append({"id": key, **boxes})

    def text_record(self, record_id: str, *kinds: str, texts: tuple[str, ...] = ("what?", "two"), **more: object):
        self.records.append({"id": record_id, **more, "conversations": _turns(*texts)})
        for kind in kinds:
            self.expect(kind, record_id)

    def finish(self) -> None:
        toy.write_tokenizer(self.data.folder / "llm")
        (self.data.folder / "records.json").write_text(json.dumps(self.records))
        (self.data.folder / "boxes.json").write_text(json.dumps(self.boxes))


def _add_pictures(writer: _Writer) -> None:
    photo, jpeg = _photo(9), _encode(_photo(9), "JPEG")
    png = _png(photo)
    writer.picture_record("gone", None, "jpg", "missing_picture")
    writer.picture_record("renamed", None, "jpg", "missing_picture")
    (writer.images / "renamed.png").write_bytes(png)
    writer.picture_record("elsewhere", None, "png", "outside_picture")
    (writer.data.folder / "elsewhere.png").write_bytes(png)
    (writer.images / "elsewhere.png").symlink_to(writer.data.folder / "elsewhere.png")
    writer.picture_record("empty", b"", "jpg", "empty_picture")
    writer.picture_record("no_pixels", _raw_png(0, 8), "png", "zero_size_picture")
    writer.picture_record("cut_jpeg", jpeg[: len(jpeg) // 2], "jpg", "truncated_picture")
    writer.picture_record("cut_png", png[: len(png) // 2], "png", "truncated_picture")
    webp = _encode(photo, "WEBP")
    writer.picture_record("cut_webp", webp[: len(webp) // 2], "webp", "truncated_picture")
    writer.picture_record("error_page", b"<html>404</html>", "jpg", "not_a_picture")
    writer.picture_record("garbled", _raw_png(8, 8, b"garbled data"), "png", "undecodable_picture")
    writer.picture_record("bomb", _raw_png(30000, 30000), "png", "oversized_picture")
    writer.picture_record("png_as_jpg", png, "jpg", "wrong_extension")
    exif = Image.Exif()
    exif[0x0112] = 6
    writer.picture_record("lying", _encode(photo, "JPEG", exif=exif), "jpg", "exif_rotation")
    writer.picture_record("deep", _png(np.full(SIZE[::-1], 40000, dtype=np.uint16)), "png", "deep_gray")
    glass = np.dstack([photo, np.full(photo.shape[:2], 9, dtype=np.uint8)])
    writer.picture_record("glass", _png(glass), "png", "transparency")
    writer.picture_record("print", _encode(photo, "JPEG", "CMYK"), "jpg", "cmyk")
    writer.picture_record("indexed", _encode(photo, "PNG", "P"), "png", "palette")
    frames = [Image.fromarray(_photo(seed)).quantize(8) for seed in (1, 2)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    writer.picture_record("film", stream.getvalue(), "gif", "animated", "palette")
    leaked = _encode(_photo(77), "JPEG")
    writer.picture_record("leaked", leaked, "jpg", "eval_leak")
    with Image.open(io.BytesIO(leaked)) as image:
        image.save(writer.data.folder / "evaluation" / "question.png")
    (writer.data.folder / "evaluation" / "other.png").write_bytes(_png(_photo(78)))


def _add_boxes(writer: _Writer) -> None:
    png = _png(_photo(5))
    writer.picture_record("no_boxes", png, "png", "missing_boxes", boxes=None)
    broken = {
        "unequal": {"boxes": BOXES, "scores": [0.5], "labels": ["a", "b"]},
        "inverted": [[30, 30, 10, 10]],
        "infinite": [[1, 1, 9, float("nan")]],
    }
    for name, boxes in broken.items():
        writer.picture_record(name, png, "png", "bad_boxes", "missing_boxes", boxes=boxes)
    writer.picture_record("outside", png, "png", "box_outside", boxes=[*BOXES, [200, 5, 220, 15]])
    writer.picture_record("overhang", png, "png", "box_overhang", boxes=[*BOXES, [50, 5, 62.5, 15]])
    writer.picture_record("swapped", png, "png", "boxes_swapped", boxes=[[5, 8, 38, 55]])
    writer.picture_record("shares", png, "png", "boxes_normalized", boxes=[[0.1, 0.2, 0.9, 0.95]])
    writer.picture_record("too_large", png, "png", "boxes_other_size", boxes=[[8, 12, 110, 75], [60, 30, 118, 79]])
    record = {"boxes": BOXES, "scores": [0.5, 0.5], "labels": ["a", "b"], "width": 120, "height": 80}
    writer.picture_record("said_otherwise", png, "png", "boxes_other_size", boxes=record)
    for name, kind in (("twin", "duplicate_id"), ("twin_boxes", "duplicate_id_boxes")):
        writer.picture_record(name, png, "png", kind)
        writer.records.append({**writer.records[-1]})
    writer.records[-1]["image"] = "good_0.png"


def _add_values(writer: _Writer) -> None:
    png = _png(_photo(6))
    record = {"boxes": BOXES, "scores": [87.0, 12.0], "labels": ["a", "b"]}
    writer.picture_record("percent", png, "png", "score_range", boxes=record)
    writer.picture_record("flat", png, "png", "flat_box", boxes=[*BOXES, [5, 5, 5, 30]])


def _add_turns(writer: _Writer) -> None:
    for name, roles in (("twice", "hhg"), ("answers", "hgg"), ("leading", "ghg"), ("dangling", "hgh")):
        writer.text_record(name, "turn_order")
        turns = [{"from": {"h": "human", "g": "gpt"}[role], "value": "two"} for role in roles]
        writer.records[-1]["conversations"] = turns


def _add_texts(writer: _Writer) -> None:
    writer.text_record("mute", "unanswered", texts=("anyone?",))
    writer.text_record("silent", "empty_answer", texts=("what?", "", "and?", "two"))
    writer.text_record("ends_early", "special_token", texts=("what?", "a </s> digit"))
    writer.text_record("draws", "placeholder_in_answer", texts=("what?", "an <image>"))
    writer.text_record("long", "truncated_text", texts=("what is there? " * 30, "two digits"))
    writer.records.append(
        {
            "id": "crowd",
            "image": ["good_0.png"] * MAX_LENGTH,
            "conversations": _turns("<image>" * MAX_LENGTH + "what?", "two"),
        }
    )
    for number in range(MAX_LENGTH):
        writer.box_record(f"crowd#{number}", BOXES)
    writer.expect("no_label", "crowd")


def _add_refused(writer: _Writer) -> None:
    writer.text_record("too_few", "placeholder_count", image="good_0.png")
    writer.text_record("too_many", "placeholder_count", texts=("<image> or <image>?", "two"), image="good_0.png")
    writer.text_record("film_record", "bad_record", videos="a.mp4")
    writer.text_record("misspelled", "bad_record", converstions=[])
    writer.records[-1].pop("conversations")
    writer.text_record("strange_turn", "bad_record")
    writer.records[-1]["conversations"][0]["from"] = "system"
    writer.text_record("other_role", "bad_record", texts=("<image>", "two"), image="good_0.png")
    writer.records[-1]["conversations"][0]["from"] = "user"
    writer.records.append(["not", "a", "record"])
    writer.expect("bad_record", "")


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def _photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    return _encode(pixels, "PNG")


def _encode(pixels: np.ndarray, kind: str, mode: str | None = None, **settings: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, kind, **settings)
    return stream.getvalue()


def _raw_png(width: int, height: int, data: bytes | None = None) -> bytes:
    """A PNG file whose header says what it likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    content = zlib.compress(b"") if data is None else data
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
