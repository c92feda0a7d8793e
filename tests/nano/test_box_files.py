"""Box files of the miniature with a share of the digits found, or another number of boxes, and the grid of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mg_llava.evaluation.scoring.box_replies import overlap
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.sizes import leaf_sizes

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"


@pytest.fixture(scope="module")
def box_files() -> Iterator[ModuleType]:
    sys.path.insert(0, str(NANO))
    import box_files

    yield box_files
    sys.path.remove(str(NANO))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty pictures with two digits, one of which is found a little off, and a shape."""
    exact, found = [], []
    for number in range(20):
        marks = [[10.0, 10.0, 20.0, 20.0], [40.0, 40.0 + number, 50.0, 50.0 + number], [80.0, 80.0, 90.0, 90.0]]
        seen = [marks[2], [41.0, *marks[1][1:]], marks[0]]
        for identifier in (f"heldout-{number:05d}", f"heldout-{number:05d}-count"):
            exact.append({"id": identifier, "boxes": marks, "labels": ["3", "7", "shape"]})
            found.append({"id": identifier, "boxes": seen, "scores": [0.5] * 3, "labels": ["mark"] * 3})
    (tmp_path / "heldout_boxes.json").write_text(json.dumps(found))
    (tmp_path / "heldout_exact_boxes.json").write_text(json.dumps(exact))
    return tmp_path


def make(box_files: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, *given: str) -> None:
    monkeypatch.setattr(sys, "argv", ["box_files.py", "--out", str(data), *given])
    box_files.main()


def boxes_of(data: Path, name: str) -> dict[str, list[list[float]]]:
    return {line["id"]: line["boxes"] for line in json.loads((data / f"heldout_boxes_{name}.json").read_text())}


def test_so_many_digits_are_found(box_files: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    make(box_files, monkeypatch, data, "--recall", "0", "30", "75", "100")
    exact = {line["id"]: line["boxes"][:2] for line in json.loads((data / "heldout_exact_boxes.json").read_text())}
    before: dict[str, list[list[float]]] = {}
    for percent in (0, 30, 75, 100):
        chosen = boxes_of(data, f"recall{percent}")
        hits = sum(any(overlap(box, mark) >= 0.5 for box in chosen[name]) for name in exact for mark in exact[name])
        assert hits == round(percent / 100 * 80), "of both records of twenty pictures with two digits"
        assert all([80.0, 80.0, 90.0, 90.0] in boxes for boxes in chosen.values()), "shapes stay"
        assert all(box in chosen[name] for name, boxes in before.items() for box in boxes)
        assert all(boxes == chosen[f"{name}-count"] for name, boxes in chosen.items() if name.count("-") == 1)
        before = chosen


def test_so_many_boxes(box_files: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    make(box_files, monkeypatch, data, "--boxes", "0", "2", "5")
    own = {line["id"]: line["boxes"] for line in json.loads((data / "heldout_boxes.json").read_text())}
    none, two, five = (boxes_of(data, f"number{number}") for number in (0, 2, 5))
    assert not any(none.values()) and {len(boxes) for boxes in two.values()} == {2}
    for name, boxes in five.items():
        assert len(boxes) == 5 and all(box in boxes for box in own[name]) and all(box in boxes for box in two[name])
        assert all(0 <= x < right <= 256 and 0 <= y < bottom <= 256 for x, y, right, bottom in boxes)
        assert boxes == five["-".join(name.split("-")[:2])]


def test_the_grid_shares_runs_with_that_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parts, scaling = (read_grid(f"data/nano/{name}.py") for name in ("grid", "scaling_grid"))
    trained = {(tuple(row.leaves), tuple(row.options)): row.name for row in parts.rows}
    same = {row.name: trained.get((tuple(row.leaves), tuple(row.options))) for row in scaling.rows}
    assert parts.name == scaling.name and same["objects_recall50"] == "objects"
    assert {same[name] for name in ("recall0", "number32", "size256", "layers4")} == {"full"}
    others = {name for name, model in same.items() if model is None}
    assert others == {"size128", "size192", "size320", "layers1", "layers2"}
    assert all(row.x is not None for row in scaling.rows)
    named = {row.evaluate[-1].split("heldout_boxes_")[-1] for row in scaling.rows if "--box-file" in row.evaluate}
    (command,) = [part for part in scaling.prepare[-1].split(" && ") if "box_files.py" in part]
    recall, number = command.split("--recall ")[1].split(" --boxes ")
    assert command in scaling.as_quick().prepare[-1], "the quick grid reads these files too"
    made = [f"recall{x}" for x in recall.split()] + [f"number{x}" for x in number.split()]
    assert named == {f"{name}.json" for name in made}
    for row in scaling.rows:
        if row.name.startswith("size"):
            assert leaf_sizes(row.leaves[-1], row.options) is not None, "its parts go together"
