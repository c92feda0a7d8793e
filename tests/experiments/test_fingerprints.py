"""Fingerprints of stages and runs follow what weights depend on and nothing else."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mg_llava.experiments import fingerprints as prints
from mg_llava.experiments.fingerprints import stage_fingerprint
from mg_llava.experiments.grid import Grid, read_grid
from mg_llava.experiments.steps import plan_runs
from tests.experiments.toys import write_grid, write_leaf


def fingerprints(path: Path, folder: Path) -> dict[tuple[str, int], str]:
    return {(run.row.name, run.seed): run.fingerprint for run in plan_runs(read_grid(path), folder)}


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
    monkeypatch.setattr(prints, "WHOLE", 10)
    file = tmp_path / "large"
    seen = set()
    for content in (b"a" * 3_000_000, b"a" * 3_000_001, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b"):
        file.write_bytes(content)
        seen.add(prints._digest_file(file))
    assert len(seen) == 4


def test_fingerprints_of_usual_stages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored results are known by them: what came to count later counts only where it is not as usual."""
    monkeypatch.chdir(tmp_path)
    Path("data.json").write_text("[1]")
    Path("leaf.py").write_text("data_path = 'data.json'\nlr = 1\nload_from = None\n")
    files = {"data.json": hashlib.sha256(b"[1]").hexdigest()}
    settings = [{"data_path": "data.json", "lr": 2}, files, 3, ""]
    wanted = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    assert stage_fingerprint("leaf.py", ("lr=2",), 3, "") == wanted
    settings = [["ask", "data.json"], {"ask": None, **files}, "before"]
    wanted = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    assert prints.command_fingerprint(["ask", "data.json"], "before") == wanted


def test_how_it_is_trained_and_where_it_starts_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leaf = write_leaf(tmp_path, "own")
    for name in ("start.pth", "trainer.py"):
        Path(name).write_text("1")

    def found() -> list[str]:
        return [
            stage_fingerprint(leaf, (), 0, ""),
            stage_fingerprint(leaf, ("load_from=start.pth",), 0, ""),
            stage_fingerprint(leaf, (), 0, "", ("python", "trainer.py")),
            stage_fingerprint(leaf, (), 0, "", Grid.train, "8"),
        ]

    before = found()
    assert len(set(before)) == 4
    Path("start.pth").write_text("2")
    Path("trainer.py").write_text("2")
    assert [one == other for one, other in zip(before, found(), strict=True)] == [True, False, False, True]


def test_trainer_and_processes_of_a_grid_count_for_its_runs(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    runs = plan_runs(read_grid(path), tmp_path)
    shared = plan_runs(read_grid(path), tmp_path, "2")
    write_grid(tmp_path, train="another train")
    other = plan_runs(read_grid(path), tmp_path)
    assert not {run.fingerprint for run in runs} & {run.fingerprint for run in (*shared, *other)}


def test_files_below_a_data_root(tmp_path: Path) -> None:
    root, other = tmp_path / "data", tmp_path / "other"
    sources: list[dict[str, Any]] = [
        {"data_path": "in/records.json", "boxes": {"targets": "in/targets.json"}},
        {"data_path": "in/own.json", "data_root": str(other)},
    ]
    places = [root / "in" / "records.json", root / "in" / "targets.json", other / "in" / "own.json"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("[1]")
    dataset = {"data_root": str(root), "sources": sources}
    leaf = write_leaf(tmp_path, "own", train_dataloader={"dataset": dataset})
    seen = {stage_fingerprint(leaf, (), 0, "")}
    for place in places:
        place.write_text("[2]")
        seen.add(stage_fingerprint(leaf, (), 0, ""))
    assert len(seen) == 4
    (root / "in" / "own.json").write_text("[3]")
    assert stage_fingerprint(leaf, (), 0, "") in seen, "its own root is another"


def test_crowded_folders_count_by_names_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prints, "_SETTLED", 10**18)  # however long this takes, the folder has just been changed
    (tmp_path / "inner").mkdir()
    file = tmp_path / "a.jpg"
    file.write_text("1")
    few = prints._digest_of(str(tmp_path))
    monkeypatch.setattr(prints, "CROWDED", 1)
    many = prints._digest_of(str(tmp_path))
    assert many != few
    file.write_text("2")
    assert prints._digest_of(str(tmp_path)) == many, "no content is read"
    file.write_text("12")
    larger = prints._digest_of(str(tmp_path))
    file.rename(tmp_path / "b.jpg")
    assert len({many, larger, prints._digest_of(str(tmp_path))}) == 3


def test_a_file_is_read_once_while_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "records.json"

    def write(text: str, nanoseconds: int) -> None:
        file.write_text(text)
        os.utime(file, ns=(nanoseconds, nanoseconds))

    read = prints._digest_content.cache_info
    write("[1]", 10**18)
    before = read().misses
    assert prints._digest_file(file) == prints._digest_file(file) == hashlib.sha256(b"[1]").hexdigest()
    assert read().misses == before + 1
    write("[2]", 10**18 + 1)
    assert prints._digest_file(file) == hashlib.sha256(b"[2]").hexdigest()
    monkeypatch.setattr(prints, "_SETTLED", 10**18)
    now = time.time_ns()
    for text in ("[3]", "[4]"):  # one tick of the clock for both
        write(text, now)
        assert prints._digest_file(file) == hashlib.sha256(text.encode()).hexdigest()
