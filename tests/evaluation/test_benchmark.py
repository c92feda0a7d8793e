"""The registry of benchmarks, and what every registered one must have."""

import os
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.tables import TablePictures, read_table
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.pope import POPE
from tests.evaluation.benchmark_files import write_table
from tests.work.test_tar_files import write_tar


@pytest.mark.parametrize("name", BENCHMARKS.scorers)
def test_every_scorer_is_whole(name: str) -> None:
    kind = BENCHMARKS.scorers[name]
    assert kind.scorer == name and kind.form and callable(kind.load) and callable(kind.rate)
    assert kind.__doc__ and kind.prompts and all(kind.headline)
    if kind.judge is not None:
        assert kind.judge.version.startswith(("video_qa", name)) and kind.judge.attempts >= 1
    own = [release.name for release in vars(kind).get("releases", ())]
    assert len(set(own)) == len(own) and all(BENCHMARKS.releases[release][0] is kind for release in own)


def test_a_class_is_found_by_its_name_with_and_without_scope() -> None:
    for name in ("POPE", "mg_llava.POPE", "mg_llava.evaluation.families.pope.POPE"):
        assert BENCHMARKS.get(name) is POPE
    with pytest.raises(KeyError, match=r"'mg_llava\.PPOE' is no known benchmark; did you mean 'POPE'"):
        BENCHMARKS.get("mg_llava.PPOE")


def test_two_benchmarks_of_one_name_are_refused() -> None:
    class POPE(Benchmark):
        """Another one."""

        def questions(self) -> list[Question]:
            return []

    with pytest.raises(ValueError, match=r"two benchmarks are called POPE: in mg_llava\.evaluation\.families\.pope"):
        BENCHMARKS.register(POPE)


@pytest.fixture
def outside(tmp_path: Path) -> list[str]:
    """Names of pictures that lie outside of the folder ``pictures``, which has ``in.png``."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (folder / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (2, 2)).save(path)
    os.symlink(tmp_path / "out.png", folder / "link.png")
    return [str(tmp_path / "out.png"), "../out.png", "link.png"]


def test_pictures_outside_of_their_folder_are_refused(tmp_path: Path, outside: list[str]) -> None:
    benchmark = POPE(tmp_path, image_folder=tmp_path / "pictures")
    inside = benchmark.ask(1, "?", "in.png").picture
    assert inside is not None and inside().size == (2, 2)
    for name in outside:
        opener = benchmark.ask(7, "?", name).picture
        assert opener is not None
        with pytest.raises(PictureError, match="of question 7 lies outside of image_folder"):
            opener()


def test_pictures_come_from_tar_files_and_urls_too(tmp_path: Path, outside: list[str]) -> None:
    picture = (tmp_path / "pictures" / "in.png").read_bytes()
    with fsspec.open("memory://benchmark/in.png", "wb") as file:
        file.write(picture)
    (row,) = read_table(write_table(tmp_path / "t.tsv", [{"index": 1, "image_path": "in.png"}]))
    for folder in (write_tar(tmp_path / "a.tar", [("in.png", picture)]), "memory://benchmark"):
        benchmark = POPE(tmp_path, image_folder=folder)
        opened = [benchmark.ask(1, "?", "in.png").picture, TablePictures([row], folder, "t.tsv").opener(row)]
        assert [opener().size for opener in opened] == [(2, 2)] * 2  # type: ignore[misc, union-attr]
        for name in outside[:2]:
            opener = benchmark.ask(7, "?", name).picture
            assert opener is not None
            with pytest.raises(PictureError, match="of question 7 lies outside of image_folder"):
                opener()


def test_pictures_of_a_table_outside_of_the_folder_are_refused(tmp_path: Path, outside: list[str]) -> None:
    rows = [{"index": n, "image_path": name} for n, name in enumerate(["in.png", *outside])]
    first, *others = read_table(write_table(tmp_path / "t.tsv", rows))
    pictures = TablePictures([first, *others], tmp_path / "pictures", "t.tsv")
    opener = pictures.opener(first)
    assert opener is not None and opener().size == (2, 2)  # type: ignore[union-attr]
    for row in others:
        opener = pictures.opener(row)
        assert opener is not None
        with pytest.raises(PictureError, match=r"of t\.tsv, index \d lies outside of image_folder"):
            opener()


def test_pictures_of_a_table_in_a_relative_folder(
    tmp_path: Path, outside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (row,) = read_table(write_table(Path("t.tsv"), [{"index": 1, "image_path": "in.png"}]))
    opener = TablePictures([row], "pictures", "t.tsv").opener(row)
    assert opener is not None and opener().size == (2, 2)  # type: ignore[union-attr]
