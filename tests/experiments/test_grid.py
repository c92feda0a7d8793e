"""Grids: reading, errors, and fingerprints, which follow what weights depend on and nothing else."""

import json
from pathlib import Path

import pytest

from mg_llava.experiments import grid as grids
from mg_llava.experiments.grid import option_path, read_grid, read_leaf, stage_fingerprint
from mg_llava.experiments.steps import plan_runs
from tests.experiments.toys import write_grid, write_leaf

ROOT = Path(__file__).parents[2]


def fingerprints(path: Path, folder: Path) -> dict[tuple[str, int], str]:
    return {(run.row.name, run.seed): run.fingerprint for run in plan_runs(read_grid(path), folder)}


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


def test_fingerprints_follow_what_matters(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    wanted = fingerprints(path, tmp_path / "a")
    assert len(set(wanted.values())) == 4
    assert fingerprints(path, tmp_path / "elsewhere") == wanted
    leaf = tmp_path / "pretrain.py"
    leaf.write_text(leaf.read_text() + "# a remark\nwork_dir = 'x'\nlog_level = 'INFO'\n")
    assert fingerprints(path, tmp_path) == wanted, "neither text nor settings that only watch"

    def changed() -> bool:
        return not set(fingerprints(path, tmp_path).values()) & set(wanted.values())

    (tmp_path / "data.json").write_text("[2]")
    assert changed(), "content of files that the config names"
    (tmp_path / "data.json").write_text("[1]")
    assert fingerprints(path, tmp_path) == wanted
    write_leaf(tmp_path, "pretrain", lr=2)
    assert changed(), "settings of the first stage"
    write_leaf(tmp_path, "pretrain")
    full = read_grid(path).with_options(["a=1"])
    assert not {run.fingerprint for run in plan_runs(full, tmp_path)} & set(wanted.values())
    write_grid(tmp_path, evaluate=[*json.loads(path.read_text())["evaluate"], "--boxes"])
    assert changed(), "how it is evaluated"


def test_options_and_settings_are_one(tmp_path: Path) -> None:
    grid = read_grid(write_grid(tmp_path))
    (optional,) = plan_runs(grid.with_options(["lr=2"]).only(["low"], [0]), tmp_path)
    write_leaf(tmp_path, "pretrain", lr=2)
    (written,) = plan_runs(grid.only(["low"], [0]), tmp_path)
    assert optional.steps[0].folder == written.steps[0].folder


def test_what_is_kept_for_the_training_and_who_loads_it_do_not_matter(tmp_path: Path) -> None:
    loader = {"num_workers": 1, "batch_size": 16, "dataset": {"sources": [{"data_path": "a"}]}}
    leaf = write_leaf(tmp_path, "pretrain", train_dataloader=loader)
    plain = stage_fingerprint(leaf, (), 0, "")
    assert stage_fingerprint(leaf, ("train_dataloader.batch_size=8",), 0, "") != plain
    loader["dataset"]["sources"][0]["caches"] = {"feature_cache": "features"}
    loader["num_workers"], loader["prefetch_factor"] = 4, 8
    write_leaf(tmp_path, "pretrain", train_dataloader=loader)
    assert stage_fingerprint(leaf, (), 0, "") == plain
    loader["dataset"]["sources"][0]["data_path"] = "b"
    write_leaf(tmp_path, "pretrain", train_dataloader=loader)
    assert stage_fingerprint(leaf, (), 0, "") != plain


def test_where_a_stage_starts_does_not_matter(tmp_path: Path) -> None:
    """The leaf of a later stage names a checkpoint of its own, which the one of the run takes the place of."""
    path = write_grid(tmp_path)
    wanted = fingerprints(path, tmp_path)
    (tmp_path / "other.pth").write_text("weights")
    for name in ("low_instruct", "full_instruct"):
        write_leaf(tmp_path, name, model={"pretrained_pth": str(tmp_path / "other.pth")})
    assert fingerprints(path, tmp_path) == wanted


def test_large_files_count_by_size_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "WHOLE", 10)
    file = tmp_path / "large"
    seen = set()
    for content in (b"a" * 3_000_000, b"a" * 3_000_001, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b"):
        file.write_bytes(content)
        seen.add(grids._digest_file(file))
    assert len(seen) == 4
