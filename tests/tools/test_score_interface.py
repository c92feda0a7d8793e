"""Every benchmark through the command line of ``tools/score.py`` in a process of its own, which never loads torch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmark_files import write_json_lines, write_table

ROOT = Path(__file__).resolve().parents[2]
PICTURE = "x" * 80
CHOICES = [
    {"index": 0, "question": "?", "A": "dog", "B": "cat", "answer": "A", "category": "c", "image": PICTURE},
    {"index": 1_000_000, "question": "?", "A": "cat", "B": "dog", "answer": "B", "category": "c", "image": "0"},
    {"index": 1, "question": "?", "A": "5", "B": "6", "answer": "B", "category": "c", "image": PICTURE},
]
LETTERS = [
    {"index": 1, "prediction": "It is 6"},
    {"index": 0, "prediction": "A"},
    {"index": 1_000_000, "prediction": "(A)"},
]
TEN = ["dog"] * 9 + ["cat"]
TEXTVQA = {"question": "What IS it?", "image_id": "i", "question_id": 7, "answers": TEN}
PROMPT = "What IS it?\nReference OCR token: a\nAnswer the question using a single word or phrase."
GQA = {"question": "Is it?", "answer": "yes", "isBalanced": True, "semantic": [], "groups": {"global": None}}
GQA |= {"types": {"structural": "verify", "semantic": "attr"}}
MATH = {"question_type": "free_form", "answer_type": "integer", "answer": "3", "choices": None, "precision": None}
REFER = {
    "img_id": "COCO_train2014_000000000009_2",
    "sents": "man",
    "bbox": [0, 10, 50, 30],
    "height": 50,
    "width": 100,
}
SEED = {"question_id": "7", "question_type_id": 1, "data_type": "image", "answer": "C", "question": "?"}
MME = {"category": "color", "image_path": "color/1.png", "image": PICTURE}
SCORED = {
    "mmbench": ({"m.tsv": CHOICES}, LETTERS, "vlmevalkit", {"Overall": 0.5, "vanilla": 1.0, "circular": 0.5}),
    "ccbench": ({"m.tsv": CHOICES}, LETTERS, "reference", {"Average": 0.0, "vanilla": 0.5, "c": 0.0}),
    "mmstar": (
        {"m.tsv": [{**CHOICES[0], "l2_category": "l"}]},
        [{"index": 0, "prediction": "a dog"}],
        "official",
        {"accuracy": 1.0, "c": 1 / 250, "c(l)": 1.0, "final score": 1 / 1500},
    ),
    "ai2d": ({"m.tsv": CHOICES[2:]}, LETTERS[:1], "vlmevalkit", {"Overall": 1.0}),
    "seed_image": ({"m.tsv": CHOICES[2:]}, LETTERS[:1], "reference", {"Average": 0.0}),
    "scienceqa_image": ({"m.tsv": CHOICES[2:]}, LETTERS[:1], "vlmevalkit", {"c": 1.0}),
    "seed": (
        {"SEED-Bench.json": {"questions": [SEED], "question_type": {"Scene": 1}}},
        [{"question_id": 7, "text": "C"}],
        "official",
        {"total": 1.0, "image": 1.0, "Scene": 1.0, "total_rounded": 100.0},
    ),
    "scienceqa": (
        {
            "folder/problems.json": {"4": {"choices": ["x", "y"], "answer": 1}},
            "folder/pid_splits.json": {"test": ["4"]},
            "folder/llava_test_CQM-A.json": [{"id": "4", "image": "4/image.png", "conversations": []}],
        },
        [{"question_id": "4", "text": "The answer is B."}],
        "official",
        {"accuracy": 1.0, "IMG-Accuracy": 1.0},
    ),
    "pope": (
        {f"folder/coco_pope_{split}.json": [{"question_id": 1, "label": "yes"}] for split in ("random", "popular")},
        [
            {"question_id": 10_000_001, "category": "random", "text": "yes"},
            {"question_id": 20_000_001, "category": "popular", "text": "No, there is not."},
        ],
        "official",
        {"random/f1": 1.0, "popular/recall": 0.0, "popular/yes_ratio": 0.0, "accuracy": 0.5},
    ),
    "pope_table": (
        {"m.tsv": [{"index": 3, "question": "?", "answer": "No", "category": "random,popular", "image": PICTURE}]},
        [{"index": 3, "prediction": "nope"}],
        "reference",
        {"random/accuracy": 1.0, "popular/yes_ratio": 0.0},
    ),
    "mme": (
        {
            "m.tsv": [
                {**MME, "index": 0, "question": "Red? Please answer yes or no.", "answer": "Yes"},
                {**MME, "index": 1, "question": "Blue? Please answer yes or no.", "answer": "No"},
            ]
        },
        [
            {
                "question_id": "color/1.png",
                "category": "color",
                "question": "Blue? Please answer yes or no.",
                "text": a,
            }
            for a in ("none",)
        ],
        "official",
        {"color": 50.0, "color/acc": 0.5, "color/acc_plus": 0.0, "perception": 50.0, "color/other_num": 1},
    ),
    "textvqa": (
        {"TextVQA_0.5.1_val.json": {"data": [TEXTVQA]}, "q.jsonl": [{"question_id": "i", "text": PROMPT}]},
        [{"question_id": "i", "prompt": PROMPT, "text": "A cat."}],
        "official",
        {"accuracy": 9 / 10 * 1 / 3, "accuracy_rounded": 30.0},
    ),
    "docvqa": (
        {"val_v1.0.json": {"data": [{"questionId": 5, "question": "?", "answers": ["abcd"]}]}},
        [{"index": 5, "prediction": "ABxx"}],
        "official",
        {"anls": 0.5},
    ),
    "docvqa_table": (
        {"m.tsv": [{"index": 5, "question": "?", "answer": "['abcd', 'x']", "image": PICTURE}]},
        [{"index": 5, "prediction": "abcd"}],
        "official",
        {"anls": 1.0},
    ),
    "gqa": (
        {"testdev_balanced_questions.json": {"201": GQA}},
        [{"question_id": "201", "text": "Yes.."}],
        "official",
        {"accuracy": 1.0, "binary": 1.0, "structural/verify": 1.0},
    ),
    "vqav2": (
        {
            "q.json": {"questions": [{"question_id": 1, "question": "?"}]},
            "a.json": {"annotations": [{"question_id": 1, "answers": [{"answer": a} for a in ["yes"] * 10]}]},
        },
        [{"question_id": 1, "text": "Yes"}],
        "official",
        {"accuracy": 0.0},
    ),
    "refcoco": (
        {"r.json": [REFER]},
        [{"id": "000000000009-man", "ans": "{<0><20><50><80>}</s>"}],
        "xtuner",
        {"accuracy": 1.0},
    ),
    "refcoco --box-format padded": (
        {"r.json": [REFER]},
        [{"id": "000000000009-man", "pred_text": "[0.0, 0.35, 0.5, 0.65]"}],
        "lmms_eval",
        {"accuracy": 1.0, "ACC@0.9": 1.0},
    ),
    "region_captions": (
        {"r.json": [REFER, {**REFER, "sents": "a man at the left"}]},
        [{"id": "000000000009#0", "text": "a man at the left"}],
        "official",
        {"CIDEr/low": 0.0},
    ),
    "captions": (
        {
            "c.json": {
                "images": [{"id": 7, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 7, "caption": caption} for caption in ("A dog.", "a big dog")],
            }
        },
        [{"image_id": "7", "caption": "a dog"}],
        "official",
        {"CIDEr/low": 0.0},
    ),
    "hallusionbench": (
        {"m.tsv": [{"index": "VD_a_1_0_1_0", "question": "?", "answer": "No", "image": PICTURE, "l2-category": "a"}]},
        [{"index": "VD_a_1_0_1_0", "prediction": "No, it is not"}],
        "reference",
        {"aAcc": 1.0, "fAcc": 1.0, "qAcc": 1.0, "a/aAcc": 1.0},
    ),
    "mmvp": (
        {
            "Questions.csv": [
                {"Index": n, "Question": "?", "Options": "(a) x (b) y", "Correct Answer": "(a)"} for n in (1, 2)
            ]
        },
        [{"question_id": n, "response": "(a)", "judge": verdict} for n, verdict in ((2, "yes"), (1, "Yes."))],
        "official",
        {"pair_accuracy": 0.0, "accuracy": 0.5},
    ),
    "mathvista": (
        {"test_mini.json": {"1": MATH}},
        {"1": {**MATH, "response": "three", "extraction": "3.0"}},
        "official",
        {"accuracy": 1.0},
    ),
    "msvd_qa": (
        {"test_q.json": [{"question_id": "1", "question": "?"}], "test_a.json": [{"answer": "dog"}]},
        [{"id": "1", "question": "?", "answer": "dog", "pred": "a dog", "judge": "{'pred': 'yes', 'score': 4.8}"}],
        "official",
        {"accuracy": 1.0, "score": 4.0},
    ),
    "llava_bench": (
        {"folder/questions.jsonl": [{"question_id": 0, "category": "conv", "text": "?"}]},
        [{"question_id": 0, "content": "8 6\nbecause"}, {"question_id": 9, "content": "1 1"}],
        "official",
        {"all": 0.75, "all_rounded": 75.0, "llava_bench_conv": 0.75},
    ),
    "mm_vet": (
        {"mm-vet.json": {"v1_0": {"question": "?", "answer": "a", "capability": ["ocr", "rec"]}}},
        {"v1_0": {"model": ["gpt"], "content": ["0.6"], "score": [0.6]}},
        "official",
        {"total": 0.6, "ocr": 0.6, "total_rounded": 60.0},
    ),
}
DRIVER = """
import json, sys
from mg_llava.commands import score
statuses = [score.main(arguments) for arguments in json.load(sys.stdin)]
loaded = [name for name in ("torch", "transformers", "mmengine") if name in sys.modules]
sys.exit(f"{statuses} {loaded}" if any(statuses) or loaded else 0)
"""


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tsv", ".csv"):
        return write_table(path, content)
    if path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
        return write_json_lines(path, content)
    path.write_text(json.dumps(content))
    return path


def arguments_of(folder: Path, name: str, data: Mapping[str, Any], predictions: Any) -> list[str]:
    files = [write(folder / "data" / file, content) for file, content in data.items()]
    given = [folder / "data" / "folder"] if next(iter(data)).startswith("folder/") else files
    lines = write(folder / ("p.json" if isinstance(predictions, dict) else "p.jsonl"), predictions)
    benchmark, *options = name.replace("_table", "").split()
    shown = [part for path in given for part in ("--data", str(path))]
    return [benchmark, *shown, "--predictions", str(lines), "--out", str(folder / "result.json"), *options]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all rows of the table, of one process."""
    folders = {name: tmp_path_factory.mktemp("row") for name in SCORED}
    commands = [arguments_of(folders[name], name, row[0], row[1]) for name, row in SCORED.items()]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=ROOT, input=json.dumps(commands), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()}


@pytest.mark.parametrize("name", SCORED)
def test_the_row_is_scored(name: str, results: dict[str, Any]) -> None:
    _, predictions, rule, metrics = SCORED[name]
    result = results[name]
    assert result["benchmark"] == name.replace("_table", "").split()[0]
    assert result["n_missing"] == (1 if name == "mme" else 0) and result["n_unknown"] == (name == "llava_bench")
    assert result["n"] == len(predictions) + (name == "mme") - (name == "llava_bench")
    found = result["rules"][rule]
    assert {key: found["metrics"][key] for key in metrics} == pytest.approx(metrics)
    assert all({"id", "score"} <= set(sample) for sample in found["per_sample"])


def test_rules_stand_side_by_side(results: dict[str, Any]) -> None:
    rules = {name: set(result["rules"]) for name, result in results.items()}
    assert rules["mmbench"] == rules["ai2d"] == rules["scienceqa_image"] == {"reference", "vlmevalkit"}
    assert rules["mmstar"] == {"official", "reference", "vlmevalkit"}
    assert {"official", "reference"} == rules["pope"] == rules["mme"]
    assert rules["refcoco"] == {"xtuner", "box_text"} and "lmms_eval" in rules["refcoco --box-format padded"]
