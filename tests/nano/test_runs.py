"""Runs, scores and reports of the miniature, without training anything."""

import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"
sys.path.insert(0, str(NANO))
import evaluate  # noqa: E402
import jobs  # noqa: E402
import measure  # noqa: E402
import runs  # noqa: E402

sys.path.remove(str(NANO))

CHANCE = {"count": 0.25, "leftmost": 0.1}
QUESTIONS = [
    {"id": "a", "picture": "p", "image": "p.jpg", "question": "?", "answer": answer, "kind": kind}
    for answer, kind in (("3", "count"), ("4", "count"), ("7", "leftmost"), ("8", "leftmost"))
]


def silent(text: str) -> None:
    pass


def test_score_and_table() -> None:
    good = evaluate.score(QUESTIONS, ["3 ", "4", "7", "9"], CHANCE)
    bad = evaluate.score(QUESTIONS, ["3", "", "17", "eight"], CHANCE)
    assert good["overall"] == {"accuracy": 0.75, "right": 3, "count": 4, "chance": pytest.approx(0.175)}
    assert [row["right"] for row in bad["answers"]] == [True, False, False, False]
    lines = [line.split() for line in evaluate.format_table({"low": bad, "full": good}).splitlines()]
    assert lines[0] == ["question", "kind", "chance", "low", "full"]
    assert lines[2:4] == [["count", "25.0", "50.0", "100.0"], ["leftmost", "10.0", "0.0", "50.0"]]
    assert lines[-1] == ["all", "17.5", "25.0", "75.0"]
    with pytest.raises(ValueError, match="shorter"):
        evaluate.score(QUESTIONS, ["3"], CHANCE)


def test_questions_need_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"make_data\.py"):
        evaluate.load_questions(tmp_path)


def test_configs_of_all_variants_exist() -> None:
    for variant in runs.VARIANTS.values():
        assert all((ROOT / variant.config(stage)).is_file() for stage in runs.STAGES)


def test_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    full, settings = runs.VARIANTS["full"], runs.Settings(tmp_path)
    wanted = runs.run_fingerprint(full, 0, settings)
    assert wanted == runs.run_fingerprint(full, 0, runs.Settings(tmp_path / "elsewhere", threads=2))
    others = [
        runs.run_fingerprint(runs.VARIANTS["objects"], 0, settings),
        runs.run_fingerprint(full, 1, settings),
        runs.run_fingerprint(full, 0, runs.Settings(tmp_path, cfg_options=("a=1",))),
        runs.run_fingerprint(full, 0, runs.Settings(tmp_path, boxes="none")),
    ]
    assert len({wanted, *others}) == 5


def test_fingerprint_follows_settings_and_not_the_text_of_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, settings = runs.VARIANTS["full"], runs.Settings(tmp_path)
    wanted = runs.stage_fingerprint(full, "stage2", 0, settings)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    leaf, base = tmp_path / full.config("stage1"), tmp_path / "configs" / "_base_" / "nano.py"
    leaf.write_text(leaf.read_text() + "\n# a remark\n")
    assert runs.stage_fingerprint(full, "stage2", 0, settings) == wanted
    base.write_text(base.read_text().replace('"lr": 4e-3', '"lr": 5e-3'))
    assert runs.stage_fingerprint(full, "stage2", 0, settings) != wanted


def test_fingerprints_of_runs_at_the_same_time(tmp_path: Path) -> None:
    settings = runs.Settings(tmp_path)
    alone = {variant.name: runs.run_fingerprint(variant, 0, settings) for variant in runs.VARIANTS.values()}
    for _ in range(5):
        with ThreadPoolExecutor(len(alone)) as pool:
            found = pool.map(lambda variant: runs.run_fingerprint(variant, 0, settings), runs.VARIANTS.values())
        assert dict(zip(alone, found, strict=True)) == alone


def test_progress_lines() -> None:
    text = "x Iter(train) [ 10/150]  lr: 1e-3  loss: 2.5\ny Iter(train) [ 20/150]  lr: 1e-3  loss: 1.25  gate: 0"
    assert runs.progress_of(text) == "20/150, loss 1.25"
    assert runs.progress_of("nothing yet") == "is loading"
    assert runs.answered("warning 1/2 x\n32/64\n64/64") == "64/64"


def test_training_without_checkpoint_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "xtuner"
    fake.write_text("#!/bin/sh\necho something broke\nexit 0\n")
    fake.chmod(0o755)
    monkeypatch.setattr(runs, "xtuner", lambda: fake)
    with pytest.raises(runs.RunError, match=r"no checkpoint[\s\S]*something broke"):
        runs.train(runs.VARIANTS["full"], "stage1", 0, runs.Settings(tmp_path / "runs"), silent)


def test_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "xtuner"
    # arguments: train CONFIG --work-dir DIR --seed N
    fake.write_text(
        '#!/bin/sh\necho run >> "$0.log"\nmkdir -p "$4"\necho x > "$4/iter_1.pth"\n'
        'echo "$4/iter_1.pth" > "$4/last_checkpoint"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(runs, "xtuner", lambda: fake)
    variant, settings = runs.VARIANTS["full"], runs.Settings(tmp_path / "runs")
    paths = [runs.train(variant, "stage1", 0, settings, silent) for _ in range(2)]
    assert paths[0] == paths[1] == tmp_path / "runs" / "full_seed0" / "stage1" / "iter_1.pth"
    assert (tmp_path / "xtuner.log").read_text() == "run\n"
    runs.train(variant, "stage1", 0, runs.Settings(tmp_path / "runs", fresh=True), silent)
    assert (tmp_path / "xtuner.log").read_text() == "run\nrun\n"


def test_failing_job_ends_the_others(tmp_path: Path) -> None:
    ended = threading.Event()
    slow = f"import pathlib, time; time.sleep(60); pathlib.Path({str(tmp_path / 'finished')!r}).touch()"

    def fail(note: jobs.Note) -> None:
        jobs.run_logged([sys.executable, "-c", "print('oh no'); exit(3)"], tmp_path / "a.log", 1, note)

    def endless(note: jobs.Note) -> None:
        try:
            jobs.run_logged([sys.executable, "-c", slow], tmp_path / "b.log", 1, note)
        finally:
            ended.set()

    with pytest.raises(jobs.RunError, match=r"status 3[\s\S]*oh no"):
        jobs.run_all({"fails": fail, "endless": endless}, 2)
    assert ended.is_set()
    assert not (tmp_path / "finished").exists()
    assert jobs.run_all({"works": lambda note: 7}, 1) == {"works": 7}


def entry(variant: str, seed: int, accuracy: float) -> measure.Entry:
    return {
        "variant": variant,
        "seed": seed,
        "boxes": "proposals",
        "fingerprint": f"{variant}{seed}",
        "kinds": {"count": accuracy},
        "all": accuracy,
        "chance": {"count": 0.25},
        "chance_all": 0.25,
        "questions": 100,
        "seconds": {"stage1": 10.0, "stage2": 20.0, "evaluation": 5.0},
    }


def test_results_and_report(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "RESULTS.md"
    for variant, seed, accuracy in [("full", 1, 0.9), ("low_only", 0, 0.3), ("full", 0, 0.1), ("full", 0, 0.8)]:
        measure.add_entry(results, entry(variant, seed, accuracy))
    measure.add_entry(results, entry("low_only", 1, 0.4))
    entries = measure.load_entries(results)
    assert [(e["variant"], e["seed"]) for e in entries] == [("low_only", 0), ("low_only", 1), ("full", 0), ("full", 1)]
    text = measure.report(entries)
    assert "| count | 25.0 | 35.0 ± 7.1 | 85.0 ± 7.1 |" in text
    assert "full minus low resolution only, all kinds, seed by seed: +50.0, +50.0 points" in text
    page.write_text(f"# Title\n\n{measure.BEGIN}\nold\n{measure.END}\n\nCeilings stay.\n")
    measure.write_report(page, text)
    measure.write_report(page, text)
    assert page.read_text().count(text) == 1
    assert "old" not in page.read_text()
    assert page.read_text().endswith("Ceilings stay.\n")
    measure.write_report(tmp_path / "new.md", text)
    assert text in (tmp_path / "new.md").read_text()
