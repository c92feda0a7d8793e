"""The miniature's records about regions: what is asked, what the benchmark counts, and three stages in a row."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mg_llava.data.records.schema import parse_record
from mg_llava.evaluation.scoring.box_replies import overlap
from mg_llava.inference import Predictor
from mg_llava.tokens import OBJECT_PLACEHOLDER
from tests.configs.test_leaves_train import nodes
from tests.run import forget_runs

ROOT = Path(__file__).parents[2]
STAGES = ("object_pretrain", "local_alignment", "global_alignment")


@pytest.fixture(scope="module")
def grounding() -> Any:
    import sys

    sys.path.insert(0, str(ROOT / "data" / "nano"))
    import grounding

    return grounding


@pytest.fixture(scope="module")
def made(grounding: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "grounding"
    grounding.write_training(out, 24, seed=1)
    grounding.write_heldout(out, 6, seed=2)
    return out


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_arms_ask_about_the_same_marks_and_no_answer_is_in_the_text_before(grounding: Any, made: Path) -> None:
    arms = {arm: read(made / f"{arm}.json") for arm in grounding.ARMS}
    pictures = {arm: [(one["image"], len(one["conversations"])) for one in records] for arm, records in arms.items()}
    assert len(set(map(str, pictures.values()))) == 1
    for records in arms.values():
        for raw in records:
            parse_record(raw)
            answers = [turn["value"] for turn in raw["conversations"][1::2]]
            boxes = [answer for answer in answers if answer.startswith("<box")]
            assert len(set(boxes)) == len(boxes)
    shown = {arm: sum(len(OBJECT_PLACEHOLDER.findall(json.dumps(raw))) for raw in own) for arm, own in arms.items()}
    assert shown["text"] == 0 < shown["images"] < shown["choices"]


def test_a_phrase_names_one_mark_and_classes_repeat(grounding: Any) -> None:
    rng, repeated = np.random.default_rng(0), 0
    for _ in range(30):
        scene = grounding.draw_scene(rng, "heldout")
        named = grounding.phrases(scene)
        assert named and len(set(named.values())) == len(named)
        repeated += max(Counter(mark.digit for mark in scene.digits).values()) > 1
    assert 3 < repeated < 20


def test_the_words_of_a_cell_say_the_region_of_its_mark(grounding: Any) -> None:
    rng, overlaps = np.random.default_rng(1), []
    for _ in range(20):
        scene = grounding.draw_scene(rng, "train")
        frame = grounding.scenes.Frame(*scene.image.size)
        for mark in scene.marks:
            x, y = ((place + 0.5) * grounding.scenes.CELL for place in (mark.column, mark.row))
            middle = grounding.region(*frame.to_original(x, y), frame.scale)
            said = grounding.BOX_TEXT.write(np.array([middle]), scene.image.size)
            found = grounding.BOX_TEXT.read(said, scene.image.size).boxes[0]
            overlaps.append(overlap(found.tolist(), list(mark.box)))
    assert min(overlaps) > 0.5


def test_stage_1_asks_about_each_mark_by_words_coordinates_and_object_image(made: Path) -> None:
    asked = {name: json.dumps(read(made / f"{name}.json")) for name in ("perception", "objects")}
    assert "<box:" in asked["perception"] and "<object:" not in asked["perception"]
    assert "<object:" in asked["objects"] and "<box:" not in asked["objects"]


def test_named_questions_follow_the_box_file(made: Path) -> None:
    boxes = {one["id"]: one["labels"] for one in read(made / "named_boxes.json")}
    for raw in read(made / "named.json"):
        for question, answer in zip(raw["conversations"][::2], raw["conversations"][1::2], strict=True):
            if match := re.search(r"Which digit is obj(\d+)", question["value"]):
                assert boxes[raw["id"]][int(match[1]) - 1] == answer["value"]


def test_named_pictures_are_asked_for_a_list_where_each_class_comes_once(made: Path) -> None:
    captions = {one["id"]: one["conversations"][1]["value"] for one in read(made / "captions.json")}
    boxes = read(made / "named_boxes.json")
    labels = {one["id"]: [label for label in one["labels"] if label != "shape"] for one in boxes}
    firsts = set()
    for raw in read(made / "named_lists.json"):
        values = [turn["value"] for turn in raw["conversations"]]
        lists = [place for place, value in enumerate(values) if value.endswith("List the digits from left to right.")]
        assert len(lists) == (len(set(labels[raw["id"]])) == len(labels[raw["id"]]))
        for place in lists:
            assert values[place + 1] == ", ".join(re.findall(r"(\d) at", captions[raw["id"]]))
            firsts.add(place == 0)
    assert firsts == {True, False}


def test_the_benchmark_counts_gold_as_right_and_shifted_boxes_as_wrong(grounding: Any, made: Path) -> None:
    import grounding_benchmark as module

    lines = module.load_lines([made / "heldout.jsonl"])

    def replies(shift: float) -> list[dict[str, str]]:
        said = []
        for line in lines:
            box = re.fullmatch(r"<box:(\d+)>", line["answer"])
            place = np.array([line["objects"][int(box[1])]["box"]]) + shift if box else None
            text = line["answer"] if place is None else grounding.BOX_TEXT.write(place, tuple(line["size"]))
            said.append({"id": line["id"], "prediction": text})
        return said

    gold, moved = (module.score_regions(lines, replies(shift))["rules"]["regions"]["metrics"] for shift in (0, 60))
    assert gold["accuracy"] == 1 and gold["no_box"] == 0
    assert moved["kinds"]["T->C"] == moved["kinds"]["I->C"] == 0 and moved["kinds"]["C->T"] == 1
    silent = module.score_regions(lines, [])["rules"]["regions"]["metrics"]
    assert silent["accuracy"] == 0 and silent["no_box"] == 1


def test_factors_of_the_learning_rate_go_with_an_llm_whose_head_is_its_embedding() -> None:
    config = Config.fromfile(ROOT / "configs" / "tiny_grounding" / "grounding_nano_local_alignment.py")
    model = nn.ModuleDict(
        {"words": nn.Embedding(3, 4), "head": nn.Linear(4, 3, bias=False), "projector": nn.Linear(2, 4)}
    )
    model["head"].weight = model["words"].weight
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(model["projector"].weight)] == 4 * rates[id(model["words"].weight)]


@pytest.mark.slow
def test_three_stages_train_one_after_the_other_and_are_evaluated(
    grounding: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import grounding_benchmark
    import grounding_probability

    monkeypatch.chdir(tmp_path)
    for stage in STAGES:
        name = f"grounding_nano_{stage}"
        config = Config.fromfile(ROOT / "configs" / "tiny_grounding" / f"{name}.py")
        for node in nodes(config._cfg_dict):
            for key, value in node.items():
                if isinstance(value, str) and value.startswith("data/nano/"):
                    node[key] = str(ROOT / value).replace(f"{ROOT}/data/nano/generated/grounding", str(made))
            if str(node.get("data_path", "")).endswith(("stage1.json", "stage2.json")):
                node.update(data_path=str(made / "text.json"), image_folder=str(made / "images"))
        config.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
        config.train_cfg.pop("max_epochs")
        config.train_cfg.max_iters, config.work_dir = 2, str(tmp_path / "work_dirs" / name)
        config.experiment_name = stage
        Runner.from_cfg(config).train()
        forget_runs()
    predictor = Predictor.from_pretrained(config, tmp_path / "work_dirs" / name / "iter_2.pth", max_new_tokens=3)
    line = read(made / "heldout.jsonl")[0]
    box = line["objects"][0]["box"]
    answer = predictor.predict(made / "images" / line["image"], "Which digit is at <box:0>?", objects=[box])
    assert len(answer.objects) == 1, "coordinates bring their object image"
    config.dump(tmp_path / "config.py")
    given = ["--checkpoint", str(tmp_path / "work_dirs" / name / "iter_2.pth"), "--max-new-tokens", "3"]
    given += ["--out", str(tmp_path / "result")]
    monkeypatch.setattr(grounding, "OUT", made)
    monkeypatch.setattr("sys.argv", ["grounding_benchmark.py", str(tmp_path / "config.py"), *given])
    assert grounding_benchmark.main() == 0
    kinds = json.loads((tmp_path / "result" / "results.json").read_text())["benchmarks"]["nano_regions"]
    assert set(kinds["score"]["rules"]["regions"]["metrics"]["kinds"]) <= set(grounding.KINDS)
    monkeypatch.setattr("sys.argv", ["grounding_probability.py", str(tmp_path / "config.py"), *given[:2]])
    assert grounding_probability.main() == 0
    assert capsys.readouterr().out.count("without coordinates") == 2


def test_the_llm_of_regions_is_made_again_in_the_same_words(
    grounding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretrain_region_llm

    given = ["--stop", "1", "--steps", "60", "--batch-size", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["pretrain_region_llm.py", *given])
    pretrain_region_llm.main()
    made, kept = (AutoTokenizer.from_pretrained(path) for path in (tmp_path, ROOT / "data" / "nano" / "region_llm"))
    text = "Where is the 7?<object><patch_index_0004><patch_index_1023></object>"
    assert made.encode(text) == kept.encode(text)
    assert len(made) == len(kept) and len(made.encode(text)) == len(made.encode("Where is the 7?")) + 4


def test_the_llm_of_regions_answers_from_perfect_text(grounding: Any) -> None:
    import pretrain_region_llm as module

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "nano" / "region_llm")
    llm = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "nano" / "region_llm", torch_dtype=torch.float32)
    sampler = module.Sampler(tokenizer, replace(module.PHASES[-1], fuzzy=0.0, captions=0.0))
    found = module.measure(module.Reader(llm, tokenizer), sampler, np.random.default_rng(3))
    assert found["T->C"] > 0.9 and found["C->T"] > 0.9 and found["I->C"] > 0.9


def test_stored_results_find_what_is_asked_for_and_object_images_help() -> None:
    stored = read(ROOT / "data" / "nano" / "grounding_results.json")
    shares = {(entry["row"], entry["seed"]): entry["metrics"] for entry in stored}

    def of_seeds(row: str, kind: str) -> np.ndarray:
        return 100 * np.array([shares[row, seed][kind] for seed in range(3)])

    assert min(of_seeds(row, "T->C").mean() for row in ("text", "images")) > 70
    assert of_seeds("images", "I->C").mean() > 60
    assert (of_seeds("images", "C+I->T") - of_seeds("text", "C->T")).min() > 5, "more than coordinates alone"
    quoted = f"{of_seeds('images', 'I->C').mean():.1f} ± {of_seeds('images', 'I->C').std(ddof=1):.1f}"
    assert quoted in (ROOT / "data" / "nano" / "GROUNDING.md").read_text()
