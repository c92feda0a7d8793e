"""tools/evaluate.py and tools/eval_mmbench.py on a toy model: files, table, resume after kill -9, two processes."""

import base64
import csv
import io
import json
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.judging.run import CallableJudge
from tests import forked, toy
from tests.hf.conftest import write_folder
from tests.run import TOOLS, run_tool
from tests.videos import write_video

ROWS = 6
CONFIG = """
model = {model!r}
tokenizer = dict(type="transformers.AutoTokenizer", pretrained_model_name_or_path={llm!r})
prompt_template = "vicuna"
picture_processor = dict(type="mg_llava.PictureProcessor", image_size={canvas})
"""


@pytest.fixture(scope="module")
def trained(toy_paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Config and checkpoint, as arguments."""
    folder = tmp_path_factory.mktemp("trained")
    model = toy.model_config(toy_paths, tuning="full")
    text = CONFIG.format(model=model, llm=toy_paths["llm"], canvas=toy.CANVAS)
    (folder / "toy_config.py").write_text(text)
    torch.save({"state_dict": toy.build_model(toy_paths, tuning="full").state_dict()}, folder / "iter_1.pth")
    return [str(folder / "toy_config.py"), "--checkpoint", str(folder / "iter_1.pth"), "--device", "cpu"]


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (48, 40 + number, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_mmbench(path: Path, rows: int = ROWS, answers: bool = True, bad: int | None = None) -> Path:
    """An MMBench table with circular copies that point at the picture of their base row."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow([column for column in columns if answers or column != "answer"])
        for turn in range(2):
            for i in range(rows):
                image = str(i) if turn else base64.b64encode(picture(i)).decode()
                image = "bad!" * 40 if i == bad and not turn else image
                answer = ["AB"[(i + turn) % 2]] if answers else []
                question = "what is there?" + " and a digit?" * (i % 3)
                cells = [i + turn * 1_000_000, question, "", "one", "two", "", "", *answer, "c", "l", image, "dev"]
                writer.writerow(cells)
    return path


def write_root(root: Path) -> Path:
    write_mmbench(root / "LMUData" / "MMBench_DEV_EN.tsv")
    (root / "pope").mkdir()
    (root / "coco" / "val2014").mkdir(parents=True)
    for i in range(3):
        (root / "coco" / "val2014" / f"{i}.png").write_bytes(picture(i))
    for split in ("adversarial", "popular", "random"):
        lines = [
            {"question_id": i + 1, "image": f"{i % 3}.png", "text": f"Is there a {w} in it?", "label": "yes"}
            for i, w in enumerate(["dog", "cat", "bus", "cup"])
        ]
        (root / "pope" / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "boxes").mkdir()
    rows = [i + turn * 1_000_000 for i in range(ROWS - 1) for turn in range(2)]
    boxes = [{"id": row, "boxes": [[2, 3, 30, 28]], "scores": [0.7], "labels": ["a"]} for row in rows]
    (root / "boxes" / "mmbench_dev_en.json").write_text(json.dumps(boxes))
    return root


def test_a_folder_in_place_of_config_and_checkpoint(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """Its replies are those of the model that it was made of; with other weights an earlier run is not continued."""
    write_folder(tmp_path / "toy", toy_paths)
    table, out = write_mmbench(tmp_path / "mmbench.tsv"), tmp_path / "out"
    options = ["--data", table, "--out", out, "--max-new-tokens", 4, "--device", "cpu"]
    status, _, err = run_tool("eval_mmbench", tmp_path / "toy", *options)
    assert status == 0, err
    (entry,) = json.loads((out / "results.json").read_text())["benchmarks"].values()
    assert entry["counts"]["answered"] == 12
    model = entry["identity"]["model"]
    assert model["checkpoint"] == "toy" and len(model["checkpoint_hash"]) == 32 and "config" not in model
    status, _, err = run_tool(
        "evaluate", tmp_path / "toy", "--checkpoint", table, "--benchmarks", f"mmbench_dev_en={table}"
    )
    assert status == 1 and "which has its weights" in err


def test_a_set_of_benchmarks(trained: list[str], tmp_path: Path) -> None:
    root, out = write_root(tmp_path / "data"), tmp_path / "out"
    options = ["--data", root, "--out", out, "--max-new-tokens", 4, "--batch-size", 5]
    status, text, err = run_tool("evaluate", *trained, "--benchmarks", "mmbench_dev_en,pope", *options)
    assert status == 0, err
    table = {line.split()[0]: line for line in text.splitlines() if line.startswith(("mmbench", "pope"))}
    assert "72.1" in table["mmbench_dev_en"] and " 12 " in table["mmbench_dev_en"]
    results = json.loads((out / "results.json").read_text())["benchmarks"]
    entry = results["mmbench_dev_en"]
    assert entry["counts"]["answered"] == 12 and entry["counts"]["pictures"] == ROWS
    assert entry["boxes"]["with"] == 10 and entry["boxes"]["without"] == 2
    model = entry["identity"]["model"]
    assert model["config"] == "toy_config.py" and len(model["config_hash"]) == len(model["checkpoint_hash"]) == 32
    assert entry["prompt"] == "reference" and entry["generation"]["max_new_tokens"] == 4
    assert results["pope"]["counts"]["answered"] == 12 and results["pope"]["boxes"]["spec"] == "detected"
    assert "mmbench_dev_en" in (out / "report.html").read_text()
    lines = [json.loads(line) for line in (out / "pope" / "predictions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines[:1]] == [{"question_id", "category", "text"}]
    # what was written is what tools/score.py takes
    status, _, err = run_tool(
        "score", "pope", "--data", root / "pope", "--predictions", out / "pope" / "predictions.jsonl", "--out",
        tmp_path / "score.json",
    )  # fmt: skip
    assert status == 0, err
    scored = json.loads((tmp_path / "score.json").read_text())
    assert scored["n_missing"] == scored["n_unknown"] == 0
    official = scored["rules"]["official"]["metrics"]
    assert official == results["pope"]["score"]["rules"]["official"]["metrics"]
    status, _, err = run_tool("evaluate", *trained, "--benchmarks", "pope", *options, "--max-new-tokens", 5)
    assert status == 1 and "generation.max_new_tokens was 4, is 5" in err and "--fresh" in err


def test_mmbench_alone(trained: list[str], tmp_path: Path) -> None:
    table, boxes = write_mmbench(tmp_path / "mmbench_test_en.tsv", answers=False, bad=2), tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{"id": 0, "boxes": [[2, 3, 30, 28]]}]))
    options = ["--data", table, "--boxes", boxes, "--out", tmp_path / "out", "--max-new-tokens", 3]
    status, text, err = run_tool("eval_mmbench", *trained, *options)
    assert status == 0, err
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["mmbench_test_en"]
    assert entry["counts"]["failed"] == 2 and entry["counts"]["answered"] == 10
    assert entry["boxes"]["with"] == 2, "question 0 and its circular copy"
    assert "mmbench_test_en.tsv, index 2" in entry["failures"][0]["error"]
    assert entry["headline"]["value"] is None and "2 questions could not be answered" in text


def test_ablation(trained: list[str], tmp_path: Path) -> None:
    root, out = write_root(tmp_path / "data"), tmp_path / "out"
    options = ["--data", root, "--out", out, "--max-new-tokens", 3, "--boxes", "detected,none", "--fusion", "on,off"]
    status, text, err = run_tool("evaluate", *trained, "--benchmarks", "mmbench_dev_en", *options)
    assert status == 0, err
    ablation = json.loads((out / "results.json").read_text())["ablation"]
    assert ablation["baseline"] == "boxes detected" and len(ablation["differences"]) == 3
    assert "boxes none, fusion off" in text
    replies = {path.parent.parent.name: path.read_text() for path in out.rglob("predictions.jsonl")}
    assert len(replies) == 4 and len(set(replies.values())) > 1


def write_video_qa(root: Path, name: str, answers: Sequence[str]) -> Path:
    """Four questions about two clips, in the files of the release."""
    folder = root / name
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for clip, frames in (("vid1", 9), ("vid2", 3)):
        write_video(folder / "videos" / f"{clip}.avi", frames=frames)
    asked = ["what is there?", "is it a digit?"] * 2
    questions = [
        {"video_name": f"vid{1 + n // 2}", "question": text, "question_id": f"v_{name}_{n}_0"}
        for n, text in enumerate(asked)
    ]
    (folder / "test_q.json").write_text(json.dumps(questions))
    (folder / "test_a.json").write_text(json.dumps([{"answer": answer, "type": 0} for answer in answers]))
    return folder


@pytest.mark.slow
def test_videos_are_judged_and_their_answers_looked_into(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MSVD-QA and MSRVTT-QA: asked, judged and scored by the commands; both numbers stand side by side."""
    root, out, names = tmp_path / "data", tmp_path / "out", ("msvd_qa", "msrvtt_qa")
    for name in names:
        write_video_qa(root, name, ["man"] * 4)
    (root / "boxes").mkdir()
    boxes = [{"id": f"vid1#{n}", "boxes": [[4 + n, 6, 30, 28]], "scores": [0.9], "labels": ["a"]} for n in range(8)]
    (root / "boxes" / "msvd_qa.json").write_text(json.dumps(boxes))
    options = ["--data", root, "--out", out, "--max-new-tokens", 4]
    status, text, err = run_tool("evaluate", *trained, "--benchmarks", ",".join(names), *options)
    assert status == 0, err
    table = {line.split()[0]: line for line in text.splitlines() if line.startswith("ms")}
    assert "71.5" in table["msvd_qa"] and "59.8" in table["msrvtt_qa"]
    results = json.loads((out / "results.json").read_text())["benchmarks"]
    shown, counts = (results["msvd_qa"][name] for name in ("boxes", "counts"))
    assert (shown["with"], shown["without"], shown["counts"]["with"], counts["answered"]) == (2, 2, 16, 4)
    assert results["msvd_qa"]["headline"]["rule"] == "containment", "there is no judge yet"
    monkeypatch.setattr("mg_llava.commands.judge.EndpointJudge", lambda *_: CallableJudge("mine", grade))
    for name in names:
        given = ["--predictions", out / name / "predictions.jsonl"]
        lines = [json.loads(line) for line in given[1].read_text().splitlines()]
        assert [set(line) for line in lines] == [{"id", "question", "answer", "pred"}] * 4
        assert all(re.search(r"\w", line["pred"]) for line in lines)
        # two true answers are words of what was said
        words = [re.findall(r"\w+", line["pred"])[0] for line in lines[:2]]
        folder = write_video_qa(root, name, [*words, "zebra", "zebra"])
        data = ["--data", folder / "test_q.json", "--data", folder / "test_a.json"]
        judged = ["--out", tmp_path / f"{name}.jsonl", "--endpoint", "http://judge", "--model", "mine"]
        status, text, err = run_tool("judge", name, *data, *given, *judged)
        assert status == 0, err
        scored = ["--predictions", judged[1], "--out", tmp_path / f"{name}.json"]
        status, text, err = run_tool("score", name, *data, *scored)
        assert status == 0, err
        assert text.index("official") < text.index("containment")
        result = json.loads(scored[3].read_text())
        rules = {rule: content["metrics"]["accuracy"] for rule, content in result["rules"].items()}
        assert rules == {"official": 0.75, "containment": 0.5} and result["judge"] == "mine"
        assert result["rules"]["official"]["metrics"]["score"] == 3.0


def grade(messages: Sequence[Mapping[str, str]]) -> str:
    """A judge that likes all answers but one of those to the second clip."""
    is_liked = "is it" not in messages[-1]["content"] or "zebra" not in messages[-1]["content"]
    return "{'pred': 'yes', 'score': 4}" if is_liked else "{'pred': 'no', 'score': 0}"


def test_list_and_usage(trained: list[str], tmp_path: Path) -> None:
    root = write_root(tmp_path / "data")
    status, text, _ = run_tool("evaluate", "--list", "--data", root)
    assert status == 0
    there, missing = text.split("missing:")
    assert "mmbench_dev_en" in there and "mmbench_dev_en.json" in there and "textvqa/train_images" in missing
    assert run_tool("evaluate", trained[0])[0] == 2
    assert run_tool("evaluate", *trained, "--benchmarks", "pope", "--limit", "0")[0] == 2
    status, _, err = run_tool("evaluate", *trained, "--benchmarks", "popee", "--data", root)
    assert status == 1 and "is 'pope' meant?" in err
    status, _, err = run_tool("evaluate", *trained, "--benchmarks", "pope,gqa,mmstar", "--data", root)
    assert status == 1 and "testdev_balanced_questions.json" in err and "MMStar.tsv" in err
    status, _, err = run_tool("evaluate", *trained, "--benchmarks", "pope", "--data", root, "--boxes", "jiter=0.1")
    assert status == 1 and "jitter" in err
    status, _, err = run_tool("evaluate", "no.py", *trained[1:], "--benchmarks", "pope", "--data", root)
    assert status == 1 and "no.py does not exist" in err


OUTSIDE = """
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.files import read_json_lines
from mg_llava.evaluation.scoring.joining import join_predictions
from mg_llava.evaluation.scoring.figures import mean_score


def load_colors(paths):
    return read_json_lines(paths[0])


def score_colors(lines, predictions, **options):
    joined = join_predictions([line["id"] for line in lines], predictions, "id", "text")
    samples = [{"id": line["id"], "score": float(line["answer"] in text)} for line, text, _ in joined.beside(lines)]
    return joined.result({"exact": ({"accuracy": mean_score(samples)}, samples)})


@BENCHMARKS.register
class Colors(Benchmark):
    \"\"\"Colors of pictures.\"\"\"

    scorer = "colors"
    form = 'jsonl; lines {"id", "text"}'
    load, rate = staticmethod(load_colors), staticmethod(score_colors)
    releases = (Release("colors_val", ("colors/val.jsonl",), "colors", "https://example.org/colors.zip"),)
    id_field, text_field = "id", "text"
    headline = ("exact", "accuracy")

    def questions(self):
        return [self.ask(line["id"], line["question"], line["image"]) for line in load_colors(self.data)]
"""


def test_a_benchmark_is_one_file_and_one_registration(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark of a module outside of the package is listed, asked, scored and scored again."""
    (tmp_path / "my_colors.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(Path(trained[0]).read_text() + '\ncustom_imports = dict(imports=["my_colors"])\n')
    folder = tmp_path / "data" / "colors"
    folder.mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.png").write_bytes(picture(n))
    lines = [{"id": n, "image": f"{n}.png", "question": "what is there?", "answer": ""} for n in range(3)]
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--max-new-tokens", 3]
    try:
        status, text, err = run_tool("evaluate", config, *trained[1:], "--benchmarks", "colors_val", *options)
        assert status == 0, err
        assert "colors_val" in text and "exact, accuracy" in text and "100.0" in text
        given = ["--data", folder / "val.jsonl", "--predictions", tmp_path / "out/colors_val/predictions.jsonl"]
        assert run_tool("score", "colors", *given, "--out", tmp_path / "o.json")[0] == 0
        assert json.loads((tmp_path / "o.json").read_text())["rules"]["exact"]["metrics"] == {"accuracy": 1.0}
        assert "colors_val" in run_tool("evaluate", "--list", "--data", tmp_path / "data")[1].split("missing:")[0]
        assert "jsonl; lines" in run_tool("score", "--help")[1]
    finally:
        del BENCHMARKS.kinds["Colors"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_kill_and_two_processes(trained: list[str], tmp_path: Path) -> None:
    """A run killed in the middle goes on with two processes, and gives the file of an uninterrupted run."""
    table = write_mmbench(tmp_path / "MMBench_DEV_EN.tsv", rows=40)
    options = [*trained, "--data", table, "--max-new-tokens", 12, "--batch-size", 2]
    whole = forked.run_tool("eval_mmbench", *options, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    killed = forked.start(TOOLS / "eval_mmbench.py", *options, "--out", tmp_path / "killed", printed=tmp_path)
    part = tmp_path / "killed" / "mmbench_dev_en" / "replies.part0.journal"
    end = time.monotonic() + 300
    while killed.exitcode is None and time.monotonic() < end and not (part.is_file() and part.stat().st_size):
        time.sleep(0.01)
    killed.kill()
    killed.join()
    known = part.read_bytes().count(b"\n")
    assert killed.exitcode == -signal.SIGKILL and 0 < known < 80, (tmp_path / "err").read_text()
    final = tmp_path / "killed" / "mmbench_dev_en" / "predictions.jsonl"
    assert not final.exists()
    resumed = forked.run_tool("eval_mmbench", *options, "--out", tmp_path / "killed", processes=2)
    assert resumed.status == 0, resumed.err
    assert final.read_bytes() == (tmp_path / "whole" / "mmbench_dev_en" / "predictions.jsonl").read_bytes()
    parts = sorted(final.parent.glob("replies.part*.journal"))
    assert len(parts) == 2 and sum(path.read_bytes().count(b"\n") for path in parts) == 80
    first, second = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed"))
    first, second = (results["benchmarks"]["mmbench_dev_en"] for results in (first, second))
    assert first["score"] == second["score"] and second["counts"]["resumed"] == known


def test_boxes_of_replies_are_scored_and_shown(trained: list[str], tmp_path: Path) -> None:
    record = {"img_id": "COCO_train2014_000000000007_2", "height": 48, "width": 47, "bbox": [1, 2, 30, 40]}
    (tmp_path / f"COCO_train2014_{7:012d}.jpg").write_bytes(picture(7))
    file = tmp_path / "refcoco_val.json"
    file.write_text(json.dumps([{**record, "sents": text} for text in ("left one", "the other")]))
    arguments = [
        "--benchmarks",
        f"refcoco_val={file}",
        "--prompt",
        "regions",
        "--gallery",
        2,
        "--out",
        tmp_path / "out",
    ]
    done = run_tool("evaluate", *trained, *arguments, "--max-new-tokens", 2)
    assert done.status == 0, done.err
    assert "box_text, accuracy" in done.out and "GroundingGPT-7B" in done.out and "88.0" in done.out
    scores = json.loads((tmp_path / "out" / "refcoco_val" / "scores.json").read_text())["rules"]["box_text"]
    assert scores["metrics"]["n_pictures"] == 1 and len(scores["per_sample"]) == 2
    page = (tmp_path / "out" / "refcoco_val" / "boxes.html").read_text()
    assert page.count("<figure>") == 2 and "Where is this in the picture: the other?" in page
