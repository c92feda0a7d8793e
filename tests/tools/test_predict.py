"""The command that asks a model: answers on stdout alone, and one line about whatever is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.videos import write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ask(files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process; returns its status, stdout and the last line of stderr."""
    from mg_llava.commands import predict

    def run(*arguments: object, **changes: str) -> tuple[int, str, str]:
        given = files | changes
        command = [
            given["config"],
            "--checkpoint",
            given["checkpoint"],
            "--image",
            given["image"],
            "--question",
            "what?",
        ]
        monkeypatch.setattr(sys, "argv", ["predict.py", *command, "--max-new-tokens", "4", *map(str, arguments)])
        status = predict.main()
        out, err = capsys.readouterr()
        return status, out, (err.strip().splitlines() or [""])[-1]

    return run


@pytest.mark.slow
def test_stdout_holds_the_answer_alone(files: dict[str, str]) -> None:
    command = [sys.executable, "tools/predict.py", files["config"], "--checkpoint", files["checkpoint"]]
    command += ["--image", files["image"], "--question", "what?", "--max-new-tokens", "4", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(run.stdout)["question"] == "what?"
    assert "projector: 4 tensors" in run.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_answer_is_drawn_with_the_boxes_of_a_file(ask, tmp_path: Path, encoding: str) -> None:
    content = json.dumps({"boxes": [[4, 6, 20, 30]], "labels": ["ä"]}, ensure_ascii=False)
    (tmp_path / "boxes.json").write_text(content, encoding)
    status, _, said = ask("--boxes", tmp_path / "boxes.json", "--out", tmp_path / "answer.png")
    assert (status, said) == (0, f"wrote {tmp_path / 'answer.png'}")


def test_a_video_has_boxes_for_each_frame(ask, tmp_path: Path) -> None:
    clip, file = write_video(tmp_path / "clip.mp4", frames=9), tmp_path / "boxes.json"
    file.write_text(json.dumps([None, *[[[4, 6, 20, 30]]] * 7]))
    status, out, said = ask("--boxes", file, "--json", image=str(clip))
    assert (status, [len(one["boxes"]) for one in json.loads(out)["pictures"]]) == (0, [0, *[1] * 7]), said
    file.write_text(json.dumps([[[4, 6, 20, 30]]] * 2))
    status, _, said = ask("--boxes", file, image=str(clip))
    assert status == 1 and "8 pictures or frames need a list of 8 sets" in said and said.endswith("found 2")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "is not JSON"),
        ("[1, 2, 3, 4]", r"boxes have shape (4,)"),
        ('{"box": []}', "'boxes' is needed"),
        ("[[30, 30, 1, 1]]", "with x1 <= x2"),
        ('[{"id": "a", "boxes": []}]', "not n lists of four numbers"),
    ],
)
def test_wrong_boxes_name_their_file(ask, tmp_path: Path, content: str, wrong: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    status, _, said = ask("--boxes", tmp_path / "boxes.json")
    assert status == 1
    assert said.startswith(f"error: {tmp_path / 'boxes.json'}")
    assert wrong in said


def test_what_is_wrong_is_said_in_one_line(ask, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\n")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.png").write_bytes(Path(files["image"]).read_bytes()[:80])
    for changes, wrong in (
        ({"config": str(tmp_path / "none.py")}, "none.py does not exist"),
        ({"config": str(tmp_path / "broken.py")}, "broken.py cannot be read (SyntaxError"),
        ({"config": str(tmp_path / "list.json")}, "list.json cannot be read"),
        ({"checkpoint": str(tmp_path / "iter_9.pth")}, "iter_9.pth does not exist"),
        ({"checkpoint": files["image"]}, "cannot be read as a checkpoint"),
        ({"image": str(tmp_path / "cut.png")}, "cut.png of request 0 cannot be read (truncated"),
    ):
        status, _, said = ask(**changes)
        assert status == 1
        assert said.startswith("error: ")
        assert wrong in said
    status, _, said = ask("--device", "gpu")
    assert (status, said.split(" is not there")[0]) == (1, "error: device 'gpu'")
