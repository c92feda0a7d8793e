"""Measure the ceilings of the miniature: what each frozen part can do alone, on held-out digits and backgrounds.

Linear readouts of the encoders' cell features and a small readout of the pooled box features are trained on training
pictures and scored on held-out ones; the LLM is scored on perfect text renderings of scenes, by kind of question.

Examples:
    python data/nano/probe.py
    python data/nano/probe.py --part llm --scenes 500
    python data/nano/probe.py --part llm --llm object_llm --loud 60
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import language
import numpy as np
import pretrain_llm
import readout
import rendering
import scenes
import torch
from pretrain_encoders import HighPath, LowPath, load_path
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
TITLES = {"clip": "low path (clip)", "convnext": "high path (convnext)"}


@torch.no_grad()
def collect(path: LowPath | HighPath, split: scenes.Split, pictures: int, seed: int) -> dict[str, np.ndarray]:
    """Features and targets of the cells, and of the boxes where a path reads them, over pictures of the task."""
    found: dict[str, list[torch.Tensor]] = {}
    for batch in readout.batches(seed, split, pictures // 8, 8, dense=0.3):
        values = {"cells": path.cell_features(batch), "content": batch.content, "level": batch.level}
        values["is_digit"] = batch.content < readout.SHAPE
        values = {name: value.flatten(0, 1) for name, value in values.items()}
        if isinstance(path, HighPath):
            values["boxes"] = readout.box_features(path.stages(batch), batch.boxes)
            values["box_content"] = batch.box_content
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def probe_encoder(name: str, path: LowPath | HighPath, pictures: int) -> None:
    """Print the readouts of one encoder."""
    known, unseen = (collect(path, split, pictures, 100 + i) for i, split in enumerate(("train", "heldout")))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))

    def show(what: str, model: object, inputs: str, wanted: str, trained: str, scored: str) -> None:
        masks = [_mask(part, kind) for part, kind in ((known, trained), (unseen, scored))]
        targets = [part[wanted] for part in (known, unseen)]
        model.fit(known[inputs][masks[0]], targets[0][masks[0]])  # type: ignore[attr-defined]
        right = model.score(unseen[inputs][masks[1]], targets[1][masks[1]])  # type: ignore[attr-defined]
        print(f"{name}: {what} {100 * right:.1f} %", flush=True)

    show("digit of a cell", linear, "cells", "content", "all", "digits")
    show("content of any cell", linear, "cells", "content", "all", "all")
    show("digit or distractor", linear, "cells", "is_digit", "marked", "marked")
    show("size level of a mark", linear, "cells", "level", "marked", "marked")
    if "boxes" in known:
        small = make_pipeline(StandardScaler(), MLPClassifier((128,), max_iter=100, random_state=0))
        show("digit of a box", small, "boxes", "box_content", "boxes", "box_digits")


def _mask(part: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Which cells, or boxes, a readout is trained or scored on."""
    return {
        "all": part["content"] >= 0,
        "digits": part["content"] < readout.SHAPE,
        "marked": part["content"] != readout.EMPTY,
        "boxes": part.get("box_content", np.empty(0)) >= 0,
        "box_digits": part.get("box_content", np.empty(0)) < readout.SHAPE,
    }[kind]


@torch.no_grad()
def answers_right(llm: LlamaForCausalLM, sampler: pretrain_llm.Sampler, kind: str, count: int, seed: int) -> float:
    """Exact-match accuracy of greedy decoding, in percent.

    Greedy decoding gives the right answer exactly when, with the right answer fed in, every token is the best one.
    """
    rng = np.random.default_rng(seed)
    sampler.questions = lambda rng, layout: [_question(rng, layout, kind)]  # type: ignore[method-assign]
    right = 0
    for _ in range(count // 50):
        embeddings, labels, *_ = sampler.batch(rng, 50)
        guess = llm(inputs_embeds=embeddings).logits.argmax(-1)[:, :-1]
        wanted = labels[:, 1:]
        right += ((guess == wanted) | (wanted == pretrain_llm.IGNORE)).all(dim=1).sum().item()
    return 100 * right / (count // 50 * 50)


def _question(rng: np.random.Generator, layout: language.Layout, kind: str) -> language.Question:
    if kind == "caption":
        return language.Question(kind, language.caption_prompt(rng), language.caption(layout))
    if kind == "where":
        return language.Question(kind, language.WHERE_PROMPT, language.where(layout))
    return language.ask_text_only(rng) if kind == "text-only" else language.ask(rng, layout, kind)


def probe_llm(folder: Path, count: int, loud: float) -> None:
    """Print the LLM's accuracy by kind of question, with and without object tokens, from perfect and poor maps."""
    llm = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = rendering.Renderer(llm.model.embed_tokens, tokenizer)
    maps = {"map": 0.0, "poor map": 1.0}
    for title, poor, no_objects in (
        (f"{name}{rest}", poor, no_objects)
        for name, poor in maps.items()
        for rest, no_objects in ((" and objects", 0.0), (" alone", 1.0))
    ):
        noise = replace(rendering.CLEAN, no_objects=no_objects, poor_map=poor, loud=loud)
        phase = replace(pretrain_llm.PHASES[-1], noise=noise)
        sampler = pretrain_llm.Sampler(pretrain_llm.Writer(tokenizer), renderer, 1, phase)
        scores = {
            kind: answers_right(llm, sampler, kind, count, 7)
            for kind in (*language.KINDS, "caption", "where", "text-only")
        }
        print(
            f"{folder.name} from text, {title}: " + "  ".join(f"{kind} {score:.1f}" for kind, score in scores.items())
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "clip", "convnext", "llm"), default="all")
    parser.add_argument("--pictures", type=int, default=400, help="pictures per split (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=300, help="scenes per kind of question (default: %(default)s)")
    parser.add_argument("--llm", default="llm", help="llm or object_llm (default: %(default)s)")
    parser.add_argument("--loud", type=float, default=1.0, help="length of objects over words (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=HERE, help="parent of clip/, convnext/, llm/")
    arguments = parser.parse_args()
    for name, title in TITLES.items():
        if arguments.part in ("all", name):
            probe_encoder(title, load_path(name, arguments.folder), arguments.pictures)
    if arguments.part in ("all", "llm"):
        probe_llm(arguments.folder / arguments.llm, arguments.scenes, arguments.loud)


if __name__ == "__main__":
    main()
