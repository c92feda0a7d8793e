"""The doctor on records of other projects: it names their format, and coordinates that are mixed up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.inspection.doctor import CheckOptions, check_dataset
from tests.toy import CANVAS, write_tokenizer

QUIET = CheckOptions(workers=1, show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 200 x 120."""
    folder = tmp_path_factory.mktemp("swift")
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (120, 200, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    write_tokenizer(folder / "tokenizer")
    return folder


def swift(number: int, bbox: list[float], kind: str | None = None) -> dict[str, Any]:
    talk = [{"role": "user", "content": "<image>Find the dog."}, {"role": "assistant", "content": "<bbox>"}]
    objects = {"ref": [], "bbox": [bbox], **({"bbox_type": kind} if kind else {})}
    return {"messages": talk, "images": [f"{number}.png"], "objects": objects}


def check(folder: Path, records: list[dict], **settings: Any) -> Any:
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    processor = {"type": "mg_llava.PictureProcessor", "image_size": CANVAS}
    given = {"data_path": str(file), "image_folder": str(folder), "tokenizer": str(folder / "tokenizer")}
    return check_dataset({**given, "template": "vicuna", "picture_processor": processor, **settings}, QUIET)


def kinds(report: Any) -> set[str]:
    return set(report.sources[0].findings.counts)


def test_the_format_is_named(folder: Path) -> None:
    records = [swift(number, [20.0, 30.0, 100.0, 90.0]) for number in range(12)]
    report = check(folder, records)
    assert kinds(report) >= {"records_format", "bad_record"} and report.errors > 12
    text = report.to_text()
    assert "12 of the first 12 look like format='ms-swift'" in text and "set format in the source" in text
    good = check(folder, records, format="ms-swift")
    assert good.errors == good.warnings == 0 and "read as ms-swift" in good.to_text()
    assert good.to_dict()["sources"][0]["format"] == "ms-swift"
    assert "config_setting" in kinds(check(folder, records, format="swift"))


@pytest.mark.parametrize(
    ("box", "kind", "found"),
    [
        ([0.1, 0.25, 0.5, 0.75], "norm1", set()),
        ([100, 250, 500, 750], "norm1000", set()),
        ([100, 250, 500, 750], None, {"object_convention", "source_boxes_other_size"}),
        ([20, 60, 110, 190], None, {"object_convention", "source_boxes_swapped"}),
        ([0.1, 0.25, 0.5, 0.75], "real", {"bad_record", "no_records"}),
        ([20.0, 30.0, 100.0, 90.0], "norm1", {"bad_record", "no_records"}),
        ([190, 100, 205, 123], None, {"box_overhang"}),
    ],
)
def test_mixed_up_coordinates_are_found(folder: Path, box: list[float], kind: str | None, found: set[str]) -> None:
    report = check(folder, [swift(number, box, kind) for number in range(12)], format="ms-swift")
    assert kinds(report) == found
    assert (report.errors > 0) == bool(found - {"box_overhang"})


def test_one_record_of_another_convention_is_found_among_good_ones(folder: Path) -> None:
    records = [swift(number, [20.0, 30.0, 100.0, 90.0]) for number in range(11)]
    report = check(folder, [*records, swift(11, [300, 250, 500, 750])], format="ms-swift")
    assert kinds(report) == {"object_convention"} and "id '11' (record 11): object 0" in report.to_text()
