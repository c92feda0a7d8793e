"""Two LLMs for the scenes of ``lawful.py``, which it makes first: one reads texts with their law, the other without.

Both go on from data/nano/llm with the same steps. A text names the objects from left to right, as the perception
prompt does, and asks about them; all of it is learnt. Into data/nano/lawful/knowing and unknowing.

Examples:
    python data/nano/lawful_llm.py
    python data/nano/lawful_llm.py --steps 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import language  # noqa: E402
import lawful  # noqa: E402
import scenes  # noqa: E402

from mg_llava.data.records.schema import Turn  # noqa: E402
from mg_llava.data.text.conversation import encode_conversation  # noqa: E402

ARMS = ("knowing", "unknowing")
BARE = 0.2
"""Share of the texts that name no objects, so that the LLM also answers without them."""
IGNORE = -100


def write_text(rng: np.random.Generator, knows: bool) -> list[Turn]:
    """A text: objects by name, two questions and their answers."""
    layout = scenes.sample_layout(rng, list(range(scenes.GRID)), list(range(scenes.GRID)))
    layout = lawful.ascend(layout) if knows else layout
    ordered = sorted(layout, key=lambda item: (item[2], rng.random()))
    names = "; ".join("shape" if item[0] < 0 else str(item[0]) for item in ordered)
    asked = [language.ask(rng, layout, str(kind)) for kind in rng.choice(lawful.KINDS, 2, replace=False)]
    head = "" if rng.random() < BARE else f"Detected objects: {names}.\n"
    turns = []
    for number, one in enumerate(asked):
        turns += [Turn("human", one.question if number else f"<image>\n{head}{one.question}"), Turn("gpt", one.answer)]
    return turns


def batch_of(rng: np.random.Generator, tokenizer: Any, size: int, knows: bool) -> tuple[Tensor, Tensor]:
    """Ids ``(B, T)`` and labels of all of them but the padding."""
    rows = []
    for _ in range(size):
        encoded = encode_conversation(write_text(rng, knows), tokenizer, "vicuna")
        rows.append(torch.tensor([number for number in encoded.input_ids if number >= 0]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    there = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    return ids, ids.masked_fill(~there, IGNORE)


def train(out: Path, knows: bool, steps: int, size: int, lr: float) -> float:
    """Train one arm; the same number of texts for both."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    rng, source = np.random.default_rng(7), str(HERE / "llm")
    tokenizer = AutoTokenizer.from_pretrained(source)
    llm = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    average = 0.0
    for step in range(steps):
        ids, labels = batch_of(rng, tokenizer, size, knows)
        logits = llm(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average += (loss.item() - average) * max(0.05, 1 / (step + 1))
        if step % 50 == 0 or step == steps - 1:
            print(f"{out.name}: step {step + 1}/{steps}  loss {average:.3f}", flush=True)
    llm.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=2e-3, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "lawful", help="default: data/nano/lawful")
    arguments = parser.parse_args()
    if arguments.out == HERE / "lawful":
        lawful.prepare()
    for arm in ARMS:
        if (arguments.out / arm / "config.json").is_file():
            print(f"{arguments.out / arm} is there; nothing to do")
            continue
        train(arguments.out / arm, arm == "knowing", arguments.steps, arguments.batch_size, arguments.lr)


if __name__ == "__main__":
    main()
