"""The command that opens the page: it says where, answers, and ends at Ctrl-C; wrong arguments get a line."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from mg_llava.commands import web
from mg_llava.profiling import data as profiling
from tests import forked
from tests.inference.serving_toys import a_picture
from tests.inference.web.page_toys import answers_of, ask, png_of
from tests.run import TOOLS


@pytest.mark.slow
def test_the_page_is_there_until_it_is_told_to_end(files: dict[str, str]) -> None:
    given = [files["config"], "--checkpoint", files["checkpoint"], "--port", "0", "--proposals"]
    given += ["--examples", str(Path(files["image"]).parent), "--max-new-tokens", "3"]
    with forked.serving(TOOLS / "web.py", *given, said="the page is at ") as (server, url):
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, timeout=60) as visitor:
            assert Path(files["image"]).name in visitor.get("/about").json()["examples"]
            board = visitor.post("/boards", content=png_of(a_picture())).json()
            assert set(answers_of(ask(visitor, board["key"], "what?"))) == {"with", "without"}
            os.kill(server.pid, signal.SIGINT)
            server.join(60)
            assert server.exitcode in (0, -signal.SIGINT)


def test_examples_are_pictures(tmp_path: Path) -> None:
    for number in range(web._MOST_EXAMPLES + 1):
        (tmp_path / f"{number:02}.PNG").touch()
    (tmp_path / "notes.txt").touch()
    found = web.find_examples([tmp_path])
    assert [path.name for path in found] == [f"{number:02}.PNG" for number in range(web._MOST_EXAMPLES)]
    assert web.find_examples([tmp_path / "03.PNG"]) == [tmp_path / "03.PNG"]
    for path, said in ((tmp_path / "absent", "does not exist"), (tmp_path / "notes.txt", "has no picture")):
        with pytest.raises(FileNotFoundError, match=said):
            web.find_examples([path])


def test_examples_below_links_to_folders_are_found_as_in_data_sets(tmp_path: Path) -> None:
    (tmp_path / "disk" / "more.png").mkdir(parents=True)
    (tmp_path / "disk" / "more.png" / "b.jpg").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").touch()
    (tmp_path / "pictures" / "there").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "disk")
    wanted = [tmp_path / "pictures" / name for name in ("a.jpg", "there/more.png/b.jpg")]
    assert web.find_examples([tmp_path / "pictures"]) == profiling._find(tmp_path / "pictures", 9) == wanted
