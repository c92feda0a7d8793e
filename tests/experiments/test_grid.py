"""Grids: reading them, what they may hold, and errors."""

import json
from pathlib import Path

import pytest

from mg_llava.experiments.grid import option_path, read_grid, read_leaf
from mg_llava.experiments.steps import plan_runs
from tests.experiments.toys import write_grid, write_leaf

ROOT = Path(__file__).parents[2]


def test_grid_of_the_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    grid = read_grid("data/nano/grid.py")
    names = [row.name for row in grid.rows]
    assert names[:4] == ["low_only", "objects", "convgate", "full"] and len(names) == 9
    runs = list(grid.runs())
    assert [sum(row.name == name for row, _ in runs) for name in names] == [5] * 4 + [3] * 5
    assert [row.name for row, seed in runs if seed == 0] == names == [row.name for row, _ in runs[:9]], "seed by seed"
    assert list(grid.metrics) == [*grid.reference["chance"]], "chance is known for what is shown"
    quick = grid.as_quick()
    assert quick.seeds == (0,) and quick.results is quick.report is None and quick.evaluate == grid.evaluate
    assert all("train_cfg.max_iters=12" in row.options for row in quick.rows)
    assert [(row.name, seed) for row, seed in quick.runs()] == [(name, 0) for name in names[:4]]
    assert [(row.name, seed) for row, seed in grid.only(["full"], [7]).runs()] == [("full", 7)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rowz": []}, r"toy\.json is no grid: grid: unknown keys \['rowz'\]"),
        ({"rows": []}, "rows need one name each"),
        ({"rows": [{"name": "a", "leaves": []}] * 2}, "rows need one name each"),
        ({"rows": [{"title": "a"}]}, r"row: unknown keys \[\], missing keys \['leaves', 'name'\]"),
        ({"rows": [{"name": "a", "leaves": ["gone.py"]}]}, r"leaves that do not exist here: gone\.py"),
        ({"seeds": "ab"}, "seed is 'ab'; it must be at least 0"),
        ({"evaluate": "ask {checkpoint} --out results"}, r"evaluate needs \{out\}.* found ask '\{checkpoint\}' --out"),
        ({"seeds": [0, -1]}, "seed is -1; it must be at least 0"),
        ({"rows": [{"name": "a", "leaves": []}]}, "row 'a' has no leaves; give the config of each stage"),
        ({"rows": [{"name": "a", "leaves": [1]}]}, r"leaves of row 'a' is \[1\]; texts are needed"),
        ({"rows": [{"name": 1, "leaves": "a.py"}]}, "name of row 1 is 1; a text is needed"),
        ({"rows": [{"name": "a", "leaves": "a.py", "title": None}]}, "title of row 'a' is None; a text is needed"),
        ({"rows": [{"name": "a", "leaves": "a.py", "x": "far"}]}, "x of row 'a' is 'far'; a number is needed"),
        (
            {"rows": [{"name": "a", "leaves": "a.py", "published": {"MMB": "68"}}]},
            "published of row 'a' is {'MMB': '68'}; numbers by title are needed",
        ),
        ({"reference": {"chance": {"all": None}}}, "reference 'chance' is {'all': None}; numbers by title are needed"),
        ({"reference": {"chance": 0.5}}, "reference 'chance' is 0.5; numbers by title are needed"),
        ({"reference": ["chance"]}, r"reference is \['chance'\]; metrics by title are needed"),
        ({"metrics": ["quiz"]}, r"metrics is \['quiz'\]; texts by title are needed"),
        ({"metrics": {"all": 1}}, "metrics is {'all': 1}; texts by title are needed"),
        ({"caption": 1, "plateau": "high"}, "caption is 1; a text is needed; plateau is 'high'; a number is needed"),
    ],
)
def test_bad_grids(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_grid(write_grid(tmp_path, **change))


def test_code_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    leaf = Path(read_grid(write_grid(tmp_path)).rows[0].leaves[0])
    with pytest.raises(ValueError, match=f"{leaf.name} cannot be changed by novalue; KEY=VALUE is needed"):
        read_leaf(str(leaf), ["novalue"])
    for file in (leaf, tmp_path / "grid.py"):
        file.write_text("a = (\n")
    with pytest.raises(ValueError, match=f"{leaf.name} cannot be read .SyntaxError"):
        read_leaf(str(leaf), [])
    with pytest.raises(ValueError, match=r"grid\.py is no grid: SyntaxError"):
        read_grid(tmp_path / "grid.py")


def test_a_row_may_have_an_evaluation_of_its_own(tmp_path: Path) -> None:
    leaf = read_grid(write_grid(tmp_path)).rows[0].leaves[0]
    rows = [{"name": "a", "leaves": [leaf]}, {"name": "b", "leaves": [leaf], "evaluate": "ask {out} --twice"}]
    first, second = plan_runs(read_grid(write_grid(tmp_path, rows=rows, seeds=[0])), tmp_path)
    assert first.steps[0].folder == second.steps[0].folder, "trained once"
    assert first.fingerprint != second.fingerprint
    assert second.steps[-1].base == ("ask", "{out}", "--twice") != first.steps[-1].base


def test_places_may_be_parts_of_words(tmp_path: Path) -> None:
    path = write_grid(tmp_path, evaluate="ask --model={config}@{checkpoint} --out={out}", seeds=[0])
    run = plan_runs(read_grid(path), tmp_path)[0]
    training = run.steps[-2]
    training.folder.mkdir()
    checkpoint = training.folder / "iter_1.pth"
    checkpoint.touch()
    (training.folder / "done.json").write_text(json.dumps({"product": str(checkpoint), "seconds": 1}))
    words = run.steps[-1].command()
    assert words == ["ask", f"--model={training.leaf}@{checkpoint}", f"--out={run.steps[-1].folder}"]


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    leaf = write_leaf(tmp_path, "own")
    quick = {"seeds": 4, "rows": "a", "options": "lr=2"}
    row = {"name": "a", "leaves": leaf, "options": "lr=1", "seeds": 3}
    grid = read_grid(write_grid(tmp_path, rows=[row], quick=quick))
    assert grid.rows[0].leaves == (leaf,) and grid.rows[0].options == ("lr=1",) and next(iter(grid.runs()))[1] == 3
    assert grid.as_quick().rows[0].options == ("lr=1", "lr=2") and [seed for _, seed in grid.as_quick().runs()] == [4]


@pytest.mark.parametrize("name", ["two words", "a,b"])
def test_folders_that_cannot_be_in_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    assert option_path(tmp_path / "plain") == str(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has a space or a comma.*use another --work-dir"):
        plan_runs(read_grid(write_grid(tmp_path)), tmp_path / name / "work")
    monkeypatch.chdir(tmp_path / name)
    assert option_path(tmp_path / name / "work") == "work", "seen from here it has none"


def test_unknown_grids_and_rows(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_grid(tmp_path / "no.json")
    grid = read_grid(write_grid(tmp_path))
    with pytest.raises(ValueError, match="rows medium are unknown; the grid has low, full"):
        grid.only(["medium"], [])
    with pytest.raises(ValueError, match="no key 'quick'"):
        grid.as_quick()
