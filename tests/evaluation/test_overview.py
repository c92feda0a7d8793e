"""Entries, their merging, the terminal's table and the page; nothing from outside becomes markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

from mg_llava.evaluation.overview import format_table, make_entry, merge_results, show, write_page
from mg_llava.evaluation.release import GROUNDING_COLUMNS
from mg_llava.evaluation.runner import RunResult

EVIL = "<script>alert('x')</script>"


def run(benchmark: str = "mmstar", value: float | None = 0.351, model: str = "m", **changes: object) -> RunResult:
    scores = [{"id": i, "score": float(i % 2)} for i in range(4)]
    metrics = {"accuracy": value, "by": {EVIL: 0.5}}
    settings: dict = {
        "benchmark": benchmark,
        "prompt": "reference",
        "score": {"n": 4, "warnings": [EVIL], "rules": {"official": {"metrics": metrics, "per_sample": scores}}},
        "headline": {"rule": "official", "metric": "accuracy", "value": value},
        "counts": {"questions": 4, "asked": 4, "answered": 3, "failed": 1, "truncated": 0},
        "failures": [{"id": 3, "error": EVIL}],
        "boxes": {"spec": "detected", "with": 3, "without": 1},
        "identity": {"model": {"weights": model}, "generation": {"max_new_tokens": 5}},
        "seconds": 1.0,
        "folder": Path("x"),
        "samples": [{"id": i, "boxes": i, "confidence": 0.4, "size": 0.1} for i in range(4)],
    }
    return RunResult(**{**settings, **changes})


class Page(HTMLParser):
    """Tags, cells, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_fractions_are_percent_and_sums_are_not() -> None:
    assert [show(value) for value in (0.351, 1, 1842.5, None, -0.02)] == ["35.1", "100.0", "1842.5", "-", "-2.0"]


def test_merging_keeps_other_benchmarks_of_the_same_model(tmp_path: Path) -> None:
    merge_results(tmp_path, [make_entry(run("mmstar")), make_entry(run("gqa"))])
    merged = merge_results(tmp_path, [make_entry(run("mmstar", 0.5))], {"baseline": "a", "differences": []})
    assert [entry["headline"]["value"] for entry in merged["benchmarks"].values()] == [0.5, 0.351]
    assert json.loads((tmp_path / "results.json").read_text()) == merged
    other = merge_results(tmp_path, [make_entry(run("pope", model="another"))])
    assert list(other["benchmarks"]) == ["pope"] and other["ablation"] is None


def test_damaged_results_are_written_anew(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"benchmarks": {')
    assert list(merge_results(tmp_path, [make_entry(run())])["benchmarks"]) == ["mmstar"]


def test_table_has_rule_counts_and_the_papers_number(tmp_path: Path) -> None:
    results = merge_results(tmp_path, [make_entry(run()), make_entry(run("nano", None))])
    table = format_table(results)
    head, _, mmstar, nano = table.splitlines()[:4]
    assert mmstar.split() == ["mmstar", "35.1", "35.1", "official,", "accuracy", "4", "1", "3", "1"]
    assert nano.split()[:2] == ["nano", "-"] and "paper" in head
    assert "1 questions could not be answered" in table and "MG-LLaVA Vicuna-7B" in table
    assert "35.5" in format_table(results, "MG-LLaVA Phi3")


def test_page_is_whole_and_escapes_everything(tmp_path: Path) -> None:
    interval = {"mean": -0.1, "low": -0.2, "high": 0.01, "n": 4}
    difference = {"benchmark": EVIL, "setting": EVIL, "score": 0.1, "baseline": 0.2, "interval": interval}
    ablation = {"baseline": EVIL, "differences": [difference]}
    results = merge_results(tmp_path, [make_entry(run()), make_entry(run(EVIL))], ablation)
    text = write_page(results, tmp_path / "deep" / "report.html", title=EVIL).read_text()
    page = Page(text)
    assert page.open == [] and not page.links and "script" not in page.tags
    assert EVIL in page.cells and "35.1" in page.cells and "-10.0" in page.cells
    assert "http" not in text.replace("arxiv", "")
    assert "By boxes per picture" in text and "identity" in text


def test_answers_that_are_boxes_tell_the_size_of_the_object() -> None:
    answers = [(0.1, 0.1, 0.12, 0.13), (0, 0, 1, 1), (10, 10, 20, 20)]
    scores = [{"id": i, "score": 1.0, "iou": 0.6, "answer": box} for i, box in enumerate(answers)]
    rules = {"official": {"metrics": {"accuracy": 1.0}, "per_sample": scores}}
    rows = make_entry(run("refcoco_val", score={"rules": rules}))["breakdowns"]["size of the annotated object"]
    assert [(row["name"].split()[0], row["n"]) for row in rows] == [("small", 1), ("medium", 1), ("large", 1)]


def test_neighbours_stand_beside_refcoco_alone() -> None:
    entries = [make_entry(run(name, 0.5 + number / 100)) for number, name in enumerate(GROUNDING_COLUMNS)]
    table = format_table({"benchmarks": {entry["benchmark"]: entry for entry in entries}, "ablation": None})
    assert "GroundingGPT-7B" in table and "82.5" in table and "mean of the eight RefCOCO splits: 53.5" in table
    assert "GroundingGPT-7B 83.46" in table
    part = format_table({"benchmarks": {"refcoco_val": entries[0], "mmstar": make_entry(run())}, "ablation": None})
    assert "Shikra-7B" in part and "mean of the eight" not in part
    assert "Shikra" not in format_table({"benchmarks": {"mmstar": make_entry(run())}, "ablation": None})
