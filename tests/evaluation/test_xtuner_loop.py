"""`xtuner test`: the command's replies and scores are the predictor's, in any number of processes."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mg_llava.data.boxes.store import open_box_store
from mg_llava.evaluation.families.multiple_choice import MMBench
from mg_llava.evaluation.replies import Replies
from mg_llava.evaluation.results import score
from mg_llava.evaluation.xtuner_loop import BenchmarkDataset, BenchmarkMetric
from mg_llava.inference import Predictor
from mg_llava.registry import MODELS
from tests import forked, toy
from tests.end_to_end.conftest import Project, project  # noqa: F401

PROCESSOR = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}


def write_table(folder: Path, rows: int = 7, broken: int | None = None) -> Path:
    """A multiple-choice table; the picture of row ``broken`` does not decode."""
    generator = np.random.default_rng(0)
    file = folder / "toy.tsv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "question", "A", "B", "answer", "category", "image"])
        for number in range(rows):
            picture = io.BytesIO()
            pixels = generator.integers(0, 256, (40, 50 + number, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(picture, format="PNG")
            image = base64.b64encode(picture.getvalue()).decode() if number != broken else "bm90IGEgcGljdHVyZQ=="
            writer.writerow([number, f"what is there {number}?", "one", "two", "AB"[number % 2], "digits", image])
    boxes = {str(i): {"boxes": [[2, 2, 20 + i, 30]], "scores": [0.5], "labels": ["a"]} for i in range(rows - 2)}
    (folder / "toy_boxes.json").write_text(json.dumps(boxes))
    return file


def config_of(table: Path) -> dict:
    boxes = str(table.with_name("toy_boxes.json"))
    return {"type": "mg_llava.MMBench", "data": str(table), "name": "toy_choice", "box_path": boxes}


def dataset_of(table: Path, llm: str, **settings: object) -> BenchmarkDataset:
    return BenchmarkDataset([config_of(table)], llm, "vicuna", PROCESSOR, **settings)  # type: ignore[arg-type]


def test_questions_have_boxes(toy_paths: dict[str, str], tmp_path: Path) -> None:
    dataset = dataset_of(write_table(tmp_path), toy_paths["llm"])
    assert dataset[0].text.startswith("what is there 0?\nA. one\nB. two") and len(dataset) == 7
    (source,) = dataset.sources
    first, last = (source.look_up(dataset[n]) for n in (0, 6))
    assert first.boxes[0].boxes.tolist() == [[2, 2, 20, 30]] and first.counts == {"with": 1}
    assert len(last.boxes[0]) == 0 and last.counts == {"without": 1}
    assert len(dataset_of(write_table(tmp_path), toy_paths["llm"], limit=3)) == 3


def test_two_benchmarks_of_one_name_are_refused(toy_paths: dict[str, str], tmp_path: Path) -> None:
    config = config_of(write_table(tmp_path))
    with pytest.raises(ValueError, match="toy_choice"):
        BenchmarkDataset([config, config], toy_paths["llm"], "vicuna", PROCESSOR)


def test_metric_joins_by_question_and_counts_what_is_missing(tmp_path: Path) -> None:
    benchmark, folder = MMBench(write_table(tmp_path), name="toy_choice"), tmp_path / "out" / "toy_choice"
    # answers are A B A B A B A; two replies are missing, one comes twice
    lines = [
        {"n": i, "id": i, "error": "broken"}
        if text is None
        else {"n": i, "id": i, "text": text, "truncated": False, "boxes": 1, "source": {"with": 1}}
        for i, text in {5: "B", 0: "A", 3: "A", 4: "A", 1: None, 2: "A"}.items()
    ]
    replies = Replies(folder)
    replies.prepare({"model": "toy"}, about={"boxes": {"spec": "detected"}})
    replies.append([*lines, lines[0]])
    replies.close()
    metrics = BenchmarkMetric().score(benchmark, replies)
    assert metrics["test/toy_choice/reference/Average"] == pytest.approx(4 / 7)
    result = json.loads((folder / "results.json").read_text())
    assert (result["score"]["n"], result["score"]["n_missing"]) == (7, 2)
    assert result["boxes"]["counts"] == {"with": 5} and result["counts"]["failed"] == 1
    assert result["failures"] == [{"id": 1, "error": "broken"}]
    again = score(benchmark, Replies(folder))
    assert again.to_dict() == result, "the folder can be scored again"


@pytest.mark.slow
def test_xtuner_test_in_two_processes_answers_as_the_predictor(project: Project) -> None:  # noqa: F811
    table = write_table(project.folder, broken=2)
    tests = {"benchmarks": [config_of(table)], "batch_size": 3, "num_workers": 1, "generation": {"max_new_tokens": 6}}
    config = project.config("evaluated", "pretrain", batch_size=4, evaluation=tests)
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for projection in (model.fuse_module.slow_proj, model.fuse_module.fast_proj):
        torch.nn.init.normal_(projection.weight, std=0.3)
    torch.save({"state_dict": model.state_dict()}, project.folder / "toy.pth")
    predictor = Predictor(model, cfg.tokenizer, "vicuna", cfg.picture_processor, max_new_tokens=6)
    store = open_box_store(table.with_name("toy_boxes.json"))
    questions = [question for question in MMBench(table).questions() if question.id != 2]
    wanted = {q.id: predictor.predict(q.picture(), q.text, store.find(q.id) or []).text for q in questions}
    assert len(set(wanted.values())) > 1

    checkpoint, tested = project.folder / "toy.pth", project.folder / "tested"
    arguments = (config, "--checkpoint", checkpoint, "--work-dir", tested, "--launcher", "pytorch")
    done = forked.run("xtuner.tools.test", *arguments, processes=2)
    output = done.out + done.err
    folder = project.folder / "tested" / "test" / "toy_choice"
    assert (folder / "predictions.jsonl").is_file(), output[-4000:]
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    assert {line["index"]: line["prediction"] for line in lines} == wanted
    result = json.loads((folder / "results.json").read_text())
    assert result["score"]["n_missing"] == result["counts"]["failed"] == 1
    assert result["boxes"]["counts"] == {"with": 4, "without": 2}
    assert "counted as not answered" in output and "test/toy_choice/reference" in output
