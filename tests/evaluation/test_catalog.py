"""Every benchmark of the catalog can be built, and the list says what is missing."""

from pathlib import Path

import pytest

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.catalog import (
    benchmark_config,
    default_boxes,
    find_release,
    format_list,
    missing_files,
)
from mg_llava.evaluation.release import COLUMNS, GROUNDING_COLUMNS, VIDEO
from mg_llava.evaluation.suite import build_benchmarks

RELEASES = {name: release for name, (_, release) in BENCHMARKS.releases.items()}


@pytest.mark.parametrize("name", RELEASES)
def test_benchmark_is_registered_and_documented(name: str) -> None:
    config = benchmark_config(name, "/root")
    kind = BENCHMARKS.get(config["type"])
    assert kind is not None, f"{config['type']} is not registered"
    assert kind.scorer in BENCHMARKS.scorers
    assert all(path.startswith("/root/") for path in config["data"])
    assert "http" in RELEASES[name].get


def test_every_number_of_the_paper_has_its_benchmark() -> None:
    assert {release.column for release in RELEASES.values()} - {None} == {*COLUMNS, *VIDEO, *GROUNDING_COLUMNS}
    assert RELEASES["refcoco+_testb"].paper == {"GroundingGPT-7B": 73.18, "Shikra-7B": 72.1, "InternVL2-8B": 71.4}
    assert RELEASES["textvqa"].paper["MG-LLaVA Vicuna-7B"] == 67.3
    assert RELEASES["mmvp"].paper == {
        "MG-LLaVA Vicuna-7B": 47.3,
        "MG-LLaVA Yi1.5-34B": 50.0,
        "LLaVA-1.5-7B": 24.7,
        "LLaVA-1.5-13B": 27.6,
    }
    assert RELEASES["msvd_qa"].paper["MG-LLaVA Vicuna-7B"] == 71.5
    assert RELEASES["gqa"].paper == {}


def test_unknown_names_have_a_suggestion() -> None:
    with pytest.raises(ValueError, match="is 'mmbench_dev_en' meant"):
        find_release("mmbench_dev")


def test_list_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "LMUData").mkdir()
    (tmp_path / "LMUData" / "MMStar.tsv").touch()
    (tmp_path / "pope").mkdir()
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "mmstar.json").touch()
    assert missing_files("mmstar", tmp_path) == []
    assert missing_files("pope", tmp_path) == [tmp_path / "coco/val2014"]
    assert default_boxes("mmstar", tmp_path) == tmp_path / "boxes" / "mmstar.json"
    there, missing = format_list(tmp_path, ["mmstar", "pope"]).split("missing:", 1)
    assert "mmstar" in there and "mmstar.json" in there and "35.1" in there and "pope" not in there.split()
    assert "coco/val2014" in missing and "AoiDragon" in missing


def test_frames_are_given_to_benchmarks_about_videos(tmp_path: Path) -> None:
    for file in ("msvd_qa/test_q.json", "msvd_qa/test_a.json", "LMUData/MMStar.tsv"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    videos, pictures = build_benchmarks(["msvd_qa", "mmstar"], tmp_path, frames=16)
    for benchmark in (videos, pictures):
        benchmark.use_frames(8)
    assert (videos.frames, pictures.frames) == (16, None)
    with pytest.raises(ValueError, match="frames=16, but none of mmstar"):
        build_benchmarks(["mmstar"], tmp_path, frames=16)
