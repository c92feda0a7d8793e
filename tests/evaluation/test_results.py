"""Scoring the replies of a folder: without a model, with what was not found or not certain named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation.families.multiple_choice import MMBench
from mg_llava.evaluation.replies import Replies
from mg_llava.evaluation.results import score
from tests.evaluation.benchmark_files import picture_base64, write_table

RED, BLUE = picture_base64((255, 0, 0)), picture_base64((0, 0, 255))
ROWS = [
    {"index": n, "question": "?", "A": "x", "B": "y", "answer": "A", "image": picture}
    for n, picture in ((0, RED), (1, BLUE), (2, RED))
]


def replies_in(folder: Path, source: dict[str, int] | None, boxes: dict[str, Any]) -> Replies:
    replies = Replies(folder)
    replies.prepare({"model": {"name": "toy"}}, about={"boxes": boxes})
    line = {"text": "A", "truncated": False, "boxes": 0, **({} if source is None else {"source": source})}
    replies.append([{"n": n, "id": n, **line} for n in range(2)] + [{"n": 2, "id": 2, "error": "no such file"}])
    replies.close()
    return replies


def test_scoring_again_needs_no_model(tmp_path: Path) -> None:
    table = write_table(tmp_path / "MMBench_X.tsv", ROWS)
    first = score(MMBench(table), replies_in(tmp_path / "run", {"with": 1}, {"spec": "detected"}))
    assert first.headline["value"] == pytest.approx(2 / 3) and first.counts["failed"] == 1
    assert first.failures == [{"id": 2, "error": "no such file"}]
    written = (tmp_path / "run" / "results.json").read_bytes()
    code = (
        "import sys\n"
        "from mg_llava.evaluation.families.multiple_choice import MMBench\n"
        "from mg_llava.evaluation.replies import Replies\n"
        "from mg_llava.evaluation.results import score\n"
        f"score(MMBench({str(table)!r}), Replies({str(tmp_path / 'run')!r}))\n"
        "print([name for name in ('torch', 'transformers', 'mmengine') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert (tmp_path / "run" / "results.json").read_bytes() == written


def test_boxes_that_were_not_found_at_all_are_said(tmp_path: Path) -> None:
    table = write_table(tmp_path / "MMBench_X.tsv", ROWS)
    for source, boxes, is_said in [
        ({"without": 1}, {"spec": "detected", "file": "boxes.json"}, True),
        ({"with": 1}, {"spec": "detected", "file": "boxes.json"}, False),
        ({"without": 1}, {"spec": "none"}, False),
    ]:
        folder = tmp_path / f"{is_said}{boxes['spec']}"
        warnings = score(MMBench(table), replies_in(folder, source, boxes)).score["warnings"]
        assert any("none of them is in boxes.json (0, 1, 2)" in warning for warning in warnings) == is_said
        written = json.loads((folder / "results.json").read_text())
        assert written["score"]["warnings"] == warnings


def test_keys_of_boxes_that_stand_for_several_pictures_are_said(tmp_path: Path) -> None:
    class ByColor(MMBench):
        """Boxes by the answer: the same key for pictures that differ."""

        def questions(self) -> list[Any]:
            return [replace(question, box_key="A") for question in super().questions()]

    table = write_table(tmp_path / "MMBench_X.tsv", ROWS)
    boxes = {"spec": "detected", "file": "boxes.json"}
    warnings = score(ByColor(table), replies_in(tmp_path / "several", {"with": 1}, boxes)).score["warnings"]
    assert any("1 keys of boxes stand for several pictures" in w and "(A)" in w for w in warnings)
    warnings = score(MMBench(table), replies_in(tmp_path / "own", {"with": 1}, boxes)).score["warnings"]
    assert not any("several pictures" in warning for warning in warnings)
