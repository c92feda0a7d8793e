"""Tables, plots and what is stored."""

from pathlib import Path

import pytest

from mg_llava.experiments.entries import RunEntry, merge_entries
from mg_llava.experiments.grid import read_grid
from mg_llava.experiments.report import GridReport, format_spread
from mg_llava.experiments.sizes import leaf_sizes
from mg_llava.experiments.steps import plan_runs
from tests.experiments.toys import write_grid


def entry(row: str, seed: int, value: float, fingerprint: str = "old") -> RunEntry:
    seconds = {"stage 1": 10.0, "evaluation": 5.0}
    metrics = {"a": value / 2, "all": value}
    return {"row": row, "seed": seed, "fingerprint": fingerprint, "metrics": metrics, "seconds": seconds}


def test_table(tmp_path: Path) -> None:
    grid = read_grid(write_grid(tmp_path, reference={"chance": {"all": 0.25}}, caption="Right answers in %"))
    runs = plan_runs(grid, tmp_path)
    new = [entry("full", 0, 0.8, runs[1].fingerprint), entry("full", 1, 0.9, runs[3].fingerprint)]
    stored = [entry("low", 1, 0.4), entry("full", 0, 0.1), entry("low", 0, 0.3), entry("gone", 0, 0.5)]
    entries = merge_entries(stored, new, grid)
    assert [(e["row"], e["seed"]) for e in entries] == [("gone", 0), ("low", 0), ("low", 1), ("full", 0), ("full", 1)]
    report = GridReport(grid, entries, runs, "python tools/run_experiments.py toy.json")
    text = report.markdown()
    assert "Right answers in %: mean ± sample standard deviation over the seeds 0, 1." in text
    assert "| | a | all |" in text and "| chance | - | 25.0 |" in text
    assert "| low only | 17.5 ± 3.5 | 35.0 ± 7.1 |" in text and "| full | 42.5 ± 3.5 | 85.0 ± 7.1 |" in text
    assert "- full minus low only, all, seed by seed: +50.0, +50.0 points" in text
    assert "| low only, seed 1 | 40.0 | 10 | 5 | stored, older config |" in text
    assert "| full, seed 0 | 80.0 | 10 | 5 | present |" in text
    assert "Stored, older config: 2 of 4 runs" in text
    page, plot = report.write(tmp_path / "out")
    assert text in page.read_text() and plot.read_bytes().startswith(b"\x89PNG")
    fewer = GridReport(grid, [e for e in entries if e["row"] == "full" or e["seed"] == 0], runs, "").markdown()
    assert "| low only (seed 0) | 15.0 | 30.0 |" in fewer


def test_metrics_that_came_later_or_are_none(tmp_path: Path) -> None:
    """Stored entries have the metrics of their time; the headline of an evaluation without answers is none."""
    stored, without = entry("low", 0, 0.4), entry("full", 1, 0.5)
    stored["metrics"] = {"old": 0.9, "all": 0.4}
    without["metrics"]["all"] = None
    report = GridReport(read_grid(write_grid(tmp_path)), [stored, entry("full", 0, 0.8), without], [], "")
    text = report.markdown()
    assert "| | a | all |" in text and "old" not in text.partition("Measure with")[0].replace("older", "")
    assert (
        "| low only (seed 0) | - | 40.0 |" in text and "- full minus low only, all, seed by seed: +40.0 points" in text
    )
    assert "| full, seed 1 | - | 10 | 5 |" in text
    assert all(path.is_file() for path in report.write(tmp_path / "out"))
    whole = GridReport(read_grid(write_grid(tmp_path, metrics={})), [stored], [], "").markdown()
    assert "| | old | all |" in whole, "a grid that names none shows what there is"


def test_many_metrics_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_llava.experiments.report.MANY", 1)
    grid = read_grid(write_grid(tmp_path, reference={"chance": {"all": 0.25}}))
    text = GridReport(grid, [entry("low", 0, 0.4), entry("full", 0, 0.8)], [], "").markdown()
    assert "| | chance | low only | full |\n|---|---|---|---|\n| a | - | 20.0 | 40.0 |" in text
    assert "| all | 25.0 | 40.0 | 80.0 |" in text


def test_groups_published_numbers_sizes_and_runs_that_stayed_on_the_plateau(tmp_path: Path) -> None:
    nano = "configs/mg_llava_nano_instruct.py"
    rows = [
        {"name": "low", "group": "Parts", "published": {"MMB": 68.2}, "leaves": [nano]},
        {"name": "full", "group": "Whole", "leaves": [nano]},
    ]
    grid = read_grid(write_grid(tmp_path, rows=rows, plateau=0.6, reference={"chance": {"all": 0.25}}))
    entries = [entry("low", 0, 0.4) | {"losses": {"stage 1": 0.71}}, entry("full", 0, 0.8), entry("full", 1, 0.9)]
    entries[1]["losses"] = {"stage 1": 0.3, "stage 2": 0.7}
    text = GridReport(grid, entries, [], "").markdown()
    assert "### Parts\n\n| | MMB | a | all | connectors | parameters | FLOPs | seconds |" in text
    assert "| chance | - | - | 25.0 | - | - | - | - |" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| low (seed 0) |"))
    assert line.startswith("| low (seed 0) | 68.2 | 20.0 | 40.0 | 201,025 | 2.80 M |") and line.endswith("| 15 |")
    assert "### Whole\n\n| | a | all | connectors |" in text
    assert "above 0.6 stayed on the plateau: 1 of 2 runs" in text
    ends = [line.split(" | ")[-2] for line in text.splitlines() if ", seed " in line and line.startswith("| ")]
    assert ends == ["**0.710**", "0.300", "-"]


def test_groups_with_an_axis_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    leaf = read_grid(write_grid(tmp_path)).rows[0].leaves[0]
    rows = [
        {"name": "low", "title": "low only", "leaves": [leaf]},
        *({"name": f"few{x}", "group": "boxes", "x": x, "leaves": [leaf]} for x in (4, 16)),
    ]
    entries = [entry("low", 0, 0.3), entry("few4", 0, 0.5), entry("few4", 1, 0.7), entry("few16", 0, 0.8)]
    report = GridReport(read_grid(write_grid(tmp_path, rows=rows)), entries, [], "")
    assert "- few16 minus few4, all, seed by seed: +30.0 points" in report.markdown(), "those of an axis among them"
    assert "minus low only" not in report.markdown()
    report.plot(tmp_path / "plot.png")
    bars, lines = figures[0].axes
    assert [text.get_text() for text in bars.get_yticklabels()] == ["low only"] and lines.get_xlabel() == "boxes"
    *dots, mean = lines.get_lines()
    assert [list(zip(*dot.get_data(), strict=True)) for dot in dots] == [[(4, 50), (4, 70)], [(16, 80)]]
    assert list(zip(*mean.get_data(), strict=True)) == [(4, 60), (16, 80)]


def test_sizes_are_of_the_row_with_its_options() -> None:
    leaf = "configs/mg_llava_nano_instruct.py"
    changes = ["model.high_res_encoder.image_size=128", "model.fusion.unequal_grids=interpolate"]
    plain, small = leaf_sizes(leaf), leaf_sizes(leaf, changes)
    assert plain and small and small.flops < plain.flops and small.parameters == plain.parameters
    same = leaf_sizes(leaf, ["model.box_projector.token_norm=2.0", "model.llm.path=data/nano/llm"])
    assert same == plain


def test_nothing_is_measured(tmp_path: Path) -> None:
    report = GridReport(read_grid(write_grid(tmp_path)), [], [], "")
    (page,) = report.write(tmp_path)
    assert "Nothing is measured yet." in page.read_text()


@pytest.mark.parametrize(
    ("values", "factor", "text"),
    [([0.5], 100, "50.0"), ([0.4, 0.6], 100, "50.0 ± 14.1"), ([], 100, "-"), ([1520.0, 1530.0], 1, "1525.0 ± 7.1")],
)
def test_numbers(values: list[float], factor: float, text: str) -> None:
    assert format_spread(values, factor) == text


def test_a_metric_has_one_unit_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value above 1 tells that the others are no shares either."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    grid = read_grid(write_grid(tmp_path, reference={"chance": {"all": 0.25}}))
    report = GridReport(grid, [entry("low", 0, 0.9), entry("full", 0, 1.2)], [], "")
    text = report.markdown()
    assert "| chance | - | 0.2 |" in text and "| low only | 45.0 | 0.9 |" in text and "| full | 60.0 | 1.2 |" in text
    assert "| low only, seed 0 | 0.9 |" in text
    assert "- full minus low only, all, seed by seed: +0.3\n" in text
    report.plot(tmp_path / "plot.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "all" and [bar.get_width() for bar in axes.patches] == [0.9, 1.2]
    high = read_grid(write_grid(tmp_path, reference={"most": {"all": 2000}}))
    assert "| low only | 45.0 | 0.9 |" in GridReport(high, [entry("low", 0, 0.9)], [], "").markdown()


def test_sizes_that_cannot_be_counted_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nano = "configs/mg_llava_nano_instruct.py"
    rows = [
        {"name": "low", "leaves": [nano]},
        {"name": "full", "leaves": [nano], "options": ["model.type=mg_llava.NoSuchSystem"]},
    ]
    report = GridReport(
        read_grid(write_grid(tmp_path, rows=rows)), [entry("low", 0, 0.4), entry("full", 0, 0.8)], [], ""
    )
    text = report.markdown()
    assert text == report.markdown()
    (line,) = (line for line in text.splitlines() if line.startswith("| full | "))
    assert line == "| full | 40.0 | 80.0 | - | - | - | 15 |"
    said = [record.getMessage() for record in caplog.records if "are not known" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"the sizes of {nano} are not known (")
    (broken := tmp_path / "broken.py").write_text("a = (\n")
    assert leaf_sizes(str(broken)) is None
