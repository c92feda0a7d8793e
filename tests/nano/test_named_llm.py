"""Names before boxes in miniature: what is asked, the LLM that reads names from text, and what was measured."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mg_llava.data.text.regions import RegionUse

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"
sys.path.insert(0, str(NANO))
pretrain, texts, grounding, rendering, llms = (
    importlib.import_module(name)
    for name in ("pretrain_named_llm", "named_text", "grounding", "rendering", "pretrain_llm")
)
sys.path.remove(str(NANO))
PERFECT = replace(texts.PHASES[-1], noise=rendering.CLEAN, keep_empty=1.0, captions=0.0, text_only=0.0, faint=0.0)


def marks(*layout: tuple[int, int]) -> list[Any]:
    """Marks of digits (-1 for a shape) in columns, each in a row of its own."""
    return [grounding.scenes.Mark(digit, row, column, 0, (0, 0, 1, 1)) for row, (digit, column) in enumerate(layout)]


def sampler_of(llm: Any, tokenizer: Any, phase: Any = PERFECT, turns: int = 6) -> Any:
    renderer = rendering.Renderer(llm.get_input_embeddings(), tokenizer)
    return texts.NamedSampler(llms.Writer(tokenizer), renderer, turns, phase)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NANO / "llm")


@pytest.fixture(scope="module")
def planted(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return pretrain.build_llm(tokenizer).eval()


def test_relations_are_of_classes_that_come_once_and_lie_apart() -> None:
    scene = marks((7, 0), (7, 3), (-1, 5), (2, 4), (5, 7), (4, 5))
    for seed in range(20):
        asked = grounding.ask_about_names(np.random.default_rng(seed), scene, 6)
        which = {one.question: one.answer for one in asked if one.kind == "which"}
        assert len(which) == 3 and all(scene[int(q[-2]) - 1].digit == int(a) for q, a in which.items())
        relations = {one.question: one.answer for one in asked if one.kind == "relation"}
        allowed = {"Is obj4 left or right of obj5?": "left", "Is obj5 left or right of obj4?": "right"}
        allowed |= {"Is obj5 left or right of obj6?": "right", "Is obj6 left or right of obj5?": "left"}
        assert len(relations) == 3 and relations.items() <= allowed.items()


def test_where_no_two_are_apart_only_digits_are_asked() -> None:
    asked = grounding.ask_about_names(np.random.default_rng(0), marks((7, 0), (-1, 5), (2, 1)), 6)
    assert sorted((one.question, one.answer) for one in asked) == [
        ("Which digit is obj1?", "7"),
        ("Which digit is obj3?", "2"),
    ]


def test_numbers_of_names_do_not_follow_the_classes() -> None:
    scene, firsts = marks((7, 0), (3, 2), (-1, 5)), set()
    for seed in range(20):
        scene_mixed = grounding.shuffle(np.random.default_rng(seed), grounding.scenes.Scene(None, tuple(scene)))
        assert {mark.digit for mark in scene_mixed.marks} == {7, 3, -1}
        firsts.add(scene_mixed.marks[0].digit)
    assert firsts == {7, 3, -1}


def test_names_stand_in_text_as_in_training(planted: Any, tokenizer: Any) -> None:
    sampler = sampler_of(planted, tokenizer, replace(PERFECT, named=1.0))
    drawn = sampler.draw(np.random.default_rng(0))
    words, after = drawn.words[:, rendering.CONTENT].tolist(), int((drawn.places < rendering.CELLS).sum())
    use, contents = RegionUse(names="obj{}"), {sampler.renderer.content(digit) for digit in range(-1, 10)}
    number = 0
    while after < len(words):
        name = use.name(tokenizer, number)
        assert words[after : after + len(name)] == name and words[after + len(name)] in contents
        after, number = after + len(name) + 1, number + 1
    assert number > 2 and drawn.places.tolist() == list(range(len(words)))


@torch.no_grad()
def test_planted_heads_find_the_object_of_a_number_before_any_training(planted: Any, tokenizer: Any) -> None:
    planted.config._attn_implementation = "eager"
    phase = replace(PERFECT, named=1.0, about_names=1.0, noise=replace(rendering.CLEAN, gaussian=0.3))
    sampler, rng, found = sampler_of(planted, tokenizer, phase, turns=1), np.random.default_rng(0), []
    numbers = {tokenizer.encode(f"obj{number}", add_special_tokens=False)[-1]: number for number in range(1, 10)}
    while len(found) < 40:
        drawn = sampler.draw(rng)
        sampler.draw, draw = (lambda rng, drawn=drawn: drawn), sampler.draw
        embeddings, _, positions = sampler.batch(rng, 1)
        sampler.draw = draw
        seen = planted(inputs_embeds=embeddings, position_ids=positions, output_attentions=True).attentions[1][0, 0]
        objects = np.flatnonzero(drawn.places >= rendering.CELLS)[4::5] + drawn.place
        for place, token in enumerate(drawn.ids):
            if token in numbers:
                found.append(int(seen[place + len(drawn.words)].argmax()) == objects[numbers[token] - 1])
    assert np.mean(found) > 0.95


def test_the_llm_of_names_answers_from_perfect_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO / "named_llm")
    llm = AutoModelForCausalLM.from_pretrained(NANO / "named_llm", torch_dtype=torch.float32).eval()
    right = pretrain.measure(llm, sampler_of(llm, tokenizer, replace(PERFECT, named=1.0)), np.random.default_rng(3))
    assert right["which"] > 0.95 and right["relation"] > 0.9
    others = pretrain.measure(llm, sampler_of(llm, tokenizer, replace(PERFECT, named=0.0)), np.random.default_rng(4))
    for kinds in (right, others):
        assert min(kinds[kind] for kind in ("leftmost", "topmost", "largest", "presence", "choice")) > 0.8


def test_the_llm_of_names_is_made_again_in_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--stop", "1", "--batch-size", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["pretrain_named_llm.py", *given])
    pretrain.main()
    made, kept = (AutoTokenizer.from_pretrained(path) for path in (tmp_path, NANO / "named_llm"))
    text = "Is obj2 left or right of obj5?"
    assert made.encode(text) == kept.encode(text)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path)
    kept = AutoModelForCausalLM.from_pretrained(NANO / "named_llm")
    for part in ("wte", "wpe"):  # words and places stay as planted
        torch.testing.assert_close(*(getattr(one.transformer, part).weight for one in (llm, kept)), atol=0.02, rtol=0)
    assert llm.config.window_size == 2 and llm.config.attention_layers == ["local", "global", "global"] * 2


def test_names_are_read_and_cost_the_other_questions_little() -> None:
    stored = {
        (one["row"], one["seed"]): one["metrics"] for one in json.loads((NANO / "named_results.json").read_text())
    }
    assert sorted(stored) == [(row, seed) for row in ("full", "named") for seed in range(3)]
    which, relation = ([stored["named", seed][kind] for seed in range(3)] for kind in ("which", "relation"))
    assert min(which) > 0.9 and min(relation) > 0.85
    for kind in ("all", *llms.language.KINDS):
        lost = [stored["full", seed][kind] - stored["named", seed][kind] for seed in range(3)]
        assert np.mean(lost) < 0.03, kind
