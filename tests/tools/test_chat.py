"""Talking in the terminal: history, pictures, boxes, saving, interrupts, and lines of a pipe."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mg_llava.commands import chat as command
from mg_llava.commands.chat import Chat, converse
from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import parse_record
from mg_llava.inference import Predictor, Request
from mg_llava.inference.conversation import Conversation
from tests import toy
from tests.inference.serving_toys import BOXES, a_picture, make_predictor
from tests.videos import write_video


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return make_predictor(toy_paths)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    a_picture().save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def chat(predictor: Predictor) -> Chat:
    return Chat(Conversation(predictor), as_json=False)


def take_all(chat: Chat, *lines: str) -> None:
    for line in lines:
        assert chat.take(line)


def test_a_talk_with_pictures_and_boxes(
    chat: Chat, predictor: Predictor, picture: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"boxes": BOXES}))
    take_all(chat, "what?", f"/image {picture}", f"/boxes {tmp_path / 'boxes.json'}", "and now?", "", "is there?")
    first = predictor.predict(None, "what?").text
    turns: list[tuple[str, str]] = [("human", "what?"), ("gpt", first), ("human", "<image>\nand now?")]
    second = predictor.predict_many([Request(turns, picture, BOXES)])[0].text
    turns += [("gpt", second), ("human", "is there?")]
    third = predictor.predict_many([Request(turns, picture, BOXES)])[0].text
    assert capsys.readouterr().out == f"{first}\n{second}\n{third}\n".translate(command._CONTROL)
    assert chat.conversation.turns == [*turns, ("gpt", third)]


def test_a_saved_talk_is_a_record(chat: Chat, picture: Path, tmp_path: Path) -> None:
    take_all(chat, f"/image {picture}", "/boxes none", "what?", f"/save {tmp_path / 'talk.json'}", "/reset")
    assert chat.conversation.turns == [] and chat.conversation.pictures == []
    (record,) = json.loads((tmp_path / "talk.json").read_text())
    assert record["image"] == [str(picture)] and record["seen"][0]["boxes"] == []
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
    records = open_records(tmp_path / "talk.json")
    assert len(records) == 1


def test_a_talk_about_a_video(chat: Chat, predictor: Predictor, picture: Path, tmp_path: Path, capsys: Any) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=9)
    take_all(chat, f"/image {clip}", "/boxes none", "what <video>?", "and then?", f"/save {tmp_path / 'talk.json'}")
    turns: list[tuple[str, str]] = [("human", "<video>\nwhat ?")]
    for question in ("and then?", None):
        wanted = predictor.predict_many([Request(turns, str(clip), [[]] * 8)])[0]
        turns += [("gpt", wanted.text), *([("human", question)] if question else [])]
    assert chat.conversation.turns == turns and len(chat.conversation.answer.pictures) == 8
    (record,) = open_records(tmp_path / "talk.json")
    assert parse_record(record).video == str(clip)
    with pytest.raises(ValueError, match="about pictures or about one video"):
        chat.take(f"/image {picture}")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:400])
    take_all(chat, "/reset", f"/image {picture}")
    for path, message in ((clip, "about pictures or about one video"), (tmp_path / "broken.mp4", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            chat.take(f"/image {path}")


@pytest.mark.parametrize("frames", [1, 8])
def test_frames_have_the_boxes_of_a_file(frames: int, toy_paths: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    clip, file = str(write_video(tmp_path / "clip.mp4", frames=9)), tmp_path / "boxes.json"
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS, "video": {"frames": frames}}
    predictor = Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", processor, max_new_tokens=6)
    chat = Chat(Conversation(predictor), as_json=False)
    sets: list[Any] = [[[4.0 + n, 6.0, 40.0, 30.0]] for n in range(frames)]
    sets[-1] = {"boxes": [[9.0, 9.0, 30.0, 30.0]], "labels": ["dog"]}
    file.write_text(json.dumps(sets))
    take_all(chat, f"/image {clip}", f"/boxes {file}", "what?")
    wanted = predictor.predict(clip, "what?", sets)
    assert chat.conversation.answer.text == wanted.text
    seen = chat.conversation.answer.pictures
    assert [one.boxes.tolist() for one in seen] == [one.boxes.tolist() for one in wanted.pictures]
    assert [len(one.boxes) for one in seen] == [1] * frames and seen[-1].labels == ("dog",)
    file.write_text(json.dumps([None] * frames))
    take_all(chat, f"/boxes {file}", "and now?")
    assert [len(one.boxes) for one in chat.conversation.answer.pictures] == [0] * frames
    for content, message in (
        (sets * 2, rf"boxes of .*clip\.mp4: .*a list of {frames} sets .*found {2 * frames}"),
        ({"boxes": BOXES}, r"boxes\.json: boxes of a video are a list with one set, or null, for each frame"),
        ([*sets[:-1], [[9, 9, 1, 1]]], rf"boxes\.json, frame {frames - 1}.*with x1 <= x2"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            chat.take(f"/boxes {file}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/boxes none", "there is no picture yet"),
        ("/image nowhere.png", r"nowhere\.png of the conversation does not exist"),
        ("/nothing", "unknown command /nothing; there are /image"),
        ("/save", "needs the name"),
        ("/set temperature -1", "temperature is -1"),
        ("/set temprature 1", "unknown arguments of generate: temprature"),
        ("/set max_new_tokens many", "max_new_tokens"),
        ("z" * 3000, "context is 512"),
    ],
)
def test_what_cannot_be_done_is_said(chat: Chat, line: str, message: str, capsys: Any) -> None:
    with pytest.raises((ValueError, OSError, PictureError), match=message):
        chat.take(line)
    assert converse(chat, iter([line, "what?"]), is_terminal=True) == 0
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and len(said.out.splitlines()) == 1, "the next line is answered"
    assert converse(chat, iter([line, "what?"]), is_terminal=False) == 1


def test_settings_change_the_answer(chat: Chat, capsys: Any) -> None:
    take_all(chat, "/set max_new_tokens 2", "what?", "/reset", "/set seed 3", "/set temperature 5.0", "what?")
    assert chat.conversation.generation["do_sample"] is True
    assert len(chat.conversation.answer.token_ids) == 2


def test_an_interrupted_answer_is_forgotten(
    chat: Chat, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    take_all(chat, "what?")
    turns = list(chat.conversation.turns)
    before = predictor.statistics.steps

    class Impatient(Conversation):
        def ask(self, question: str) -> Iterator[str]:
            pieces = super().ask(question)
            yield next(pieces)
            pieces.close()
            raise KeyboardInterrupt

    monkeypatch.setattr(chat.conversation, "__class__", Impatient)
    assert converse(chat, iter(["and now?"]), is_terminal=True) == 0
    assert predictor.statistics.steps == before + 1
    assert chat.conversation.turns == turns and "stopped" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        converse(chat, iter(["and now?"]), is_terminal=False)


def test_a_terminal_is_not_commanded_by_answers(chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(chat.conversation, "ask", lambda question: (piece for piece in ("\x1b[2Ja\n", "\x07b\x9b")))
    take_all(chat, "what?")
    assert capsys.readouterr().out == "[2Ja\nb\n"


@pytest.mark.slow
def test_lines_of_a_pipe_are_one_talk(files: dict[str, str]) -> None:
    module = [sys.executable, "-m", "mg_llava", "chat", files["config"], "--checkpoint", files["checkpoint"]]
    given = [*module, "--image", files["image"], "--max-new-tokens", "4", "--json"]
    run = subprocess.run(given, input="what?\nand now?\n", capture_output=True, text=True, timeout=300, check=True)
    first, second = map(json.loads, run.stdout.splitlines())
    assert (first["question"], second["question"]) == ("what?", "and now?")
    assert len(first["pictures"]) == len(second["pictures"]) == 1


def test_commands_know_their_arguments(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["chat", "c.py", "--boxes", "b.json"])
    with pytest.raises(SystemExit) as ended:
        command.parse_arguments()
    assert ended.value.code == 2 and "exactly one --image" in capsys.readouterr().err
