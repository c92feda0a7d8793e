"""All files below a folder, links followed."""

from pathlib import Path

from mg_llava.work.folders import walk_files


def test_files_behind_links_are_found_and_circles_end(tmp_path: Path) -> None:
    for name in ("data/b/2.jpg", "data/a/1.jpg", "elsewhere/deep/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "deep" / "self").symlink_to(tmp_path / "elsewhere" / "deep")
    found = list(walk_files(tmp_path / "data"))
    assert found == ["a/1.jpg", "b/2.jpg", "linked/deep/3.jpg"]
    assert list(walk_files(tmp_path / "nowhere")) == []
