"""Questions and prompts of the benchmarks with free answers, boxes or judges; replies come back to their scorers."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark
from mg_llava.tokens import VIDEO_PLACEHOLDER
from tests.videos import write_video
from tests.work.test_tar_files import write_tar

SHORT = "\nAnswer the question using a single word or phrase."


def build(kind: str, data: Any, **settings: Any) -> Benchmark:
    return BENCHMARKS.build({"type": f"mg_llava.{kind}", "data": data, **settings})


def write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def picture(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


def cell(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def score_of(benchmark: Benchmark, replies: list[str]) -> Any:
    lines = [benchmark.prediction(q, text) for q, text in zip(benchmark.questions(), replies, strict=True)]
    lines = json.loads(json.dumps(lines))
    result = benchmark.score(lines)
    assert (result["n_missing"], result["n_unknown"], result["n_duplicates"]) == (0, 0, 0)
    rule, metric = benchmark.headline
    assert {str(q.id) for q in benchmark.questions()} == {
        str(one["id"]) for one in result["rules"][rule]["per_sample"]
    }
    return result["rules"][rule]["metrics"][metric]


def test_textvqa_asks_with_ocr_tokens_and_is_scored_by_picture_and_question(tmp_path: Path) -> None:
    records = [
        {"question": f"What {i}?", "image_id": "p1", "question_id": 5 + i, "answers": [f"word {i}"] * 10}
        for i in range(2)
    ]
    ocr = "\nReference OCR token: A, B" + SHORT
    lines = [{"question_id": "p1", "image": "p1.jpg", "text": one["question"] + ocr} for one in reversed(records)]
    data = [
        write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": records}),
        write_lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", lines),
    ]
    picture(tmp_path / "train_images" / "p1.jpg")
    benchmark = build("TextVQA", data, image_folder=str(tmp_path / "train_images"))
    first, second = benchmark.questions()
    assert first.text == "What 1?" + ocr
    assert (first.id, second.id, first.box_key) == (6, 5, "p1")
    assert first.picture_key == second.picture_key
    assert first.picture is not None and first.picture().size == (6, 4)  # type: ignore[union-attr]
    assert benchmark.prediction(first, "x")["question_id"] == "p1"
    assert score_of(benchmark, ["Word 1.", "no"]) == 0.5
    without = build("TextVQA", data[:1], prompt="no_ocr")
    assert [q.text for q in without.questions()] == ["What 0?" + SHORT, "What 1?" + SHORT]
    assert score_of(without, ["word 0", "word 1"]) == 1.0
    with pytest.raises(ValueError, match=r"needs llava_textvqa_val_v051_ocr\.jsonl"):
        build("TextVQA", data[:1]).questions()


@pytest.mark.parametrize("kind", ["DocVQA", "InfoVQA", "OCRVQA", "TextVQA"])
def test_tables_with_pictures_in_their_cells(kind: str, tmp_path: Path) -> None:
    rows = [
        ("1", cell("red"), "who?", str(["ann"] * 10)),
        ("2", "1", "what?", str(["bob"] * 10)),
        ("3", "x" * 80, "?", str(["c"] * 10)),
    ]
    path = tmp_path / "DocVQA_VAL.tsv"
    path.write_text("index\timage\tquestion\tanswer\n" + "".join("\t".join(row) + "\n" for row in rows))
    benchmark = build(kind, str(path), **({"prompt": "no_ocr"} if kind == "TextVQA" else {}))
    first, second, third = benchmark.questions()
    assert first.text == "who?" + SHORT
    assert first.picture_key == second.picture_key != third.picture_key
    assert second.picture().getpixel((0, 0)) == (255, 0, 0)  # type: ignore[union-attr,misc]
    with pytest.raises(PictureError, match=r"DocVQA_VAL.tsv, index 3"):
        third.picture()  # type: ignore[misc]
    assert score_of(benchmark, ["Ann", "", "c"]) == pytest.approx(2 / 3)


def test_docvqas_own_file(tmp_path: Path) -> None:
    record = {"questionId": 49, "question": "Date?", "image": "documents/a.png", "answers": ["1/8/93"]}
    benchmark = build("DocVQA", write_json(tmp_path / "val_v1.0.json", {"data": [record]}), image_folder=str(tmp_path))
    picture(tmp_path / "documents" / "a.png")
    (question,) = benchmark.questions()
    assert question.picture().size == (6, 4)  # type: ignore[union-attr,misc]
    assert score_of(benchmark, ["1/8/93"]) == 1.0


def test_chartqa(tmp_path: Path) -> None:
    data = [
        write_json(tmp_path / f"test_{name}.json", [{"imgname": "a.png", "query": "How much?", "label": "10"}])
        for name in ("human", "augmented")
    ]
    assert score_of(build("ChartQA", data), ["10.2", "12"]) == 0.5


def test_vqav2(tmp_path: Path) -> None:
    answers = [{"answer": "yes", "answer_id": i} for i in range(10)]
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 9, "image_id": 42, "question": "Is it?"}]}
    annotation = {"question_id": 9, "answers": answers, "answer_type": "yes/no", "question_type": "is it"}
    data = [
        write_json(tmp_path / "questions.json", questions),
        write_json(tmp_path / "annotations.json", {"annotations": [annotation]}),
    ]
    benchmark = build("VQAv2", data)
    (question,) = benchmark.questions()
    assert (question.text, question.picture_key) == ("Is it?" + SHORT, "COCO_val2014_000000000042.jpg")
    assert score_of(benchmark, ["Yes"]) == 1.0
    line = {
        "question_id": 3,
        "image": "COCO_test2015_000000000001.jpg",
        "text": "Is it?" + SHORT,
        "category": "default",
    }
    part = write_lines(tmp_path / "part.jsonl", [line])
    full = write_lines(tmp_path / "full.jsonl", [{**line, "question_id": i} for i in (1, 3)])
    test = build("VQAv2", part, submission=full)
    assert test.score([test.prediction(test.questions()[0], "Two")])["submission"] == [
        {"question_id": 1, "answer": ""},
        {"question_id": 3, "answer": "2"},
    ]


def test_gqa(tmp_path: Path) -> None:
    fields = {
        "imageId": "n1",
        "types": {"structural": "query", "semantic": "obj"},
        "groups": {"global": None},
        "semantic": [],
    }
    content = {
        "07": {**fields, "question": "What is it?", "answer": "dog", "isBalanced": True},
        "08": {**fields, "question": "What?", "answer": "dog", "isBalanced": False},
    }
    benchmark = build("GQA", write_json(tmp_path / "testdev_balanced_questions.json", content))
    (question,) = benchmark.questions()
    assert (question.text, question.picture_key) == ("What is it?" + SHORT, "n1.jpg")
    assert score_of(benchmark, ["Dog."]) == 1.0


def test_refcoco_in_both_forms(tmp_path: Path) -> None:
    record = {"img_id": "COCO_train2014_000000000007_2", "sents": "left cup", "height": 100, "width": 200}
    records = [{**record, "bbox": [0, 0, 100, 50]}, {**record, "bbox": [100, 50, 100, 50]}]
    path = write_json(tmp_path / "refcoco_val.json", records)
    picture(tmp_path / "train2014" / "COCO_train2014_000000000007.jpg")
    benchmark = build("RefCOCO", path, image_folder=str(tmp_path / "train2014"))
    question = benchmark.questions()[0]
    assert (
        question.text == "Please provide the bounding box coordinate of the region this sentence describes: left cup"
    )
    assert question.picture().size == (6, 4)  # type: ignore[union-attr,misc]
    assert score_of(benchmark, ["[0.0, 0.0, 0.5, 0.5]", "[0.0, 0.0, 0.5, 0.5]"]) == 0.5
    padded = build("RefCOCO", path, box_format="padded")
    assert score_of(padded, ["[0.0, 0.25, 0.5, 0.5]", "[0.5, 0.5, 1.0, 0.75]"]) == 1.0
    xtuner = build("RefCOCO", path, prompt="xtuner")
    assert xtuner.questions()[0].text == "[refer] give me the location of left cup\n<image>"
    assert score_of(xtuner, ["{<0><0><50><50>}", "{<50><50><100><100>}"]) == 1.0


def test_mathvista(tmp_path: Path) -> None:
    problem = {"question_type": "free_form", "answer_type": "integer", "question": "How many?", "answer": "4"}
    path = write_json(tmp_path / "test_mini.json", {"1": {**problem, "image": "images/1.jpg"}})
    assert score_of(build("MathVista", path), ["4"]) == 1.0


def test_judged_benchmarks_ask_the_bare_question(tmp_path: Path) -> None:
    content = {"v1_0": {"imagename": "v1_0.png", "question": "Why?", "answer": "x", "capability": ["rec"]}}
    vet = build("MMVet", write_json(tmp_path / "mm-vet.json", content), image_folder=str(tmp_path))
    (question,) = vet.questions()
    assert (question.text, vet.prediction(question, "so")["question_id"]) == ("Why?", "v1_0")
    assert vet.score([vet.prediction(question, "so")])["rules"] == {}
    folder = tmp_path / "bench"
    folder.mkdir()
    write_lines(
        folder / "questions.jsonl", [{"question_id": 0, "image": "001.jpg", "text": "What?", "category": "conv"}]
    )
    picture(folder / "images" / "001.jpg")
    (question,) = build("LLaVABench", str(folder)).questions()
    assert question.picture().size == (6, 4)  # type: ignore[union-attr,misc]


def test_videos_are_frames(tmp_path: Path) -> None:
    questions = [
        {"question_id": f"v_{i}", "question": "who?", "video_name": name} for i, name in enumerate(["a", "b.avi"])
    ]
    data = [
        write_json(tmp_path / "test_q.json", questions),
        write_json(tmp_path / "test_a.json", [{"answer": "man"}, {"answer": "dog"}]),
    ]
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    benchmark = build("MSVDQA", data, image_folder=str(folder), frames=4)
    first, second = benchmark.questions()
    assert (first.text, first.frames, first.picture_key, first.box_key) == (
        f"{VIDEO_PLACEHOLDER}\nwho?",
        4,
        "a.mp4",
        "a",
    )
    assert benchmark.prediction(first, "a man") == {"id": "v_0", "question": "who?", "answer": "man", "pred": "a man"}
    with pytest.raises((PictureError, ImportError), match=r"b.avi of question v_1 does not exist|PyAV"):
        second.picture()  # type: ignore[misc]


def write_video_qa(folder: Path, **fields: Any) -> list[str]:
    question = {"question_id": "v_1", "question": "who?", **fields}
    return [
        write_json(folder / "test_q.json", [question]),
        write_json(folder / "test_a.json", [{"answer": "man"}]),
    ]


def test_frames_are_those_of_the_model_unless_others_are_given(tmp_path: Path) -> None:
    data = write_video_qa(tmp_path, video_name="a")
    follows, told = build("MSVDQA", data), build("MSVDQA", data, frames=4)
    for benchmark, frames in ((follows, 3), (told, 4)):
        benchmark.use_frames(3)
        (question,) = benchmark.questions()
        assert question.frames == benchmark.identity["frames"] == frames


@pytest.mark.parametrize("place", ["folder", "file", "tar", "url"])
def test_videos_come_from_tar_files_and_urls_too(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    content = write_video(folder / "a.mp4", frames=3).read_bytes()
    with fsspec.open("memory://clips/a.mp4", "wb") as file:
        file.write(content)
    places = {
        "folder": str(folder),
        "file": f"file://{folder}",
        "tar": write_tar(tmp_path / "clips.tar", [("./a.mp4", content)]),
        "url": "memory://clips",
    }
    data = write_video_qa(tmp_path, video_name="a.mp4" if place == "url" else "a")
    (question,) = build("MSVDQA", data, image_folder=places[place], frames=2).questions()
    assert question.picture_key == "a.mp4" and len(question.picture()) == 2  # type: ignore[arg-type,misc]


@pytest.mark.parametrize("fields", [{}, {"video_name": None}])
def test_a_question_without_a_video_is_named(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_q\.json.*1 questions have no 'video_name'.*\(v_1\)"):
        build("MSVDQA", write_video_qa(tmp_path, **fields)).questions()


def test_two_videos_for_one_question_are_not_one_by_chance(tmp_path: Path) -> None:
    questions = [{"question_id": "v_1", "question": "who?", "video_name": "a"}]
    (tmp_path / "test_q.json").write_text(json.dumps(questions))
    (tmp_path / "test_a.json").write_text(json.dumps([{"answer": "man"}]))
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.avi", "b.avi", "b.mp4"):
        (folder / name).touch()
    benchmark = BENCHMARKS.build({"type": "MSVDQA", "data": [tmp_path / "test_q.json", tmp_path / "test_a.json"]})
    assert [question.picture_key for question in benchmark.questions()] == ["a.avi"]
    (folder / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"a\.avi and a\.mp4 may both be the video of a question"):
        benchmark.questions()
