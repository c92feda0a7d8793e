"""A folder that the pinned stack exported, with weights that follow from their names, and a model's answers with it.

``python -m tests.hf.stacks FOLDER OUT`` answers with a folder of weights, and saves it again to ``OUT/again``: another
stack's Python runs it. ``python -m tests.hf.stacks`` writes the golden data again, which only the pinned stack does.
"""

import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from mg_llava.hf import MGLLaVAConfig, MGLLaVAForConditionalGeneration
from tests import toy
from tests.hf.conftest import BOXES, make_picture, write_folder

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER, ANSWERS = GOLDEN / "folder", GOLDEN / "answers.safetensors"
NEW = 32
"""Ids that are generated."""
SEED = 0


def fill_folder(folder: Path) -> None:
    """Copy the golden folder, and write its weights."""
    shutil.copytree(FOLDER, folder)
    model = MGLLaVAForConditionalGeneration(MGLLaVAConfig.from_pretrained(folder))
    weights = {name: _weight(name, tensor) for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _weight(name: str, tensor: Tensor) -> Tensor:
    """Random numbers that depend on the name alone: near one for norms, of unit gain for matrices."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    drawn = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim < 2:
        return (1 if name.endswith("weight") else 0) + 0.2 * drawn
    return drawn * (1 if "embed" in name else 1.5 * tensor[0].numel() ** -0.5)


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of the processor: pictures with and without boxes, several of them, rows padded on the left."""
    one, other = make_picture(0), make_picture(1, (50, 70))
    further = [[1.0, 2.0, 30.0, 50.0]]
    longer = [
        _asks("What is there in the picture, and what is there beside it?"),
        _asks("How many?"),
        _asks("Who?", 0),
    ]
    return {
        "boxes": {"conversation": _asks("How many?"), "images": one, "boxes": BOXES},
        "plain": {"conversation": _asks("How many?"), "images": one},
        "several": {"conversation": _asks("Which?", 2), "images": [one, other], "boxes": [BOXES, further]},
        "padded": {"conversation": longer, "images": [one, other, None], "boxes": [BOXES, None, None]},
    }


def _asks(question: str, pictures: int = 1) -> list[dict[str, Any]]:
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@torch.no_grad()
def answer(folder: Path, **options: Any) -> dict[str, Tensor]:
    """For each case logits of every fifth token, of several rows at the last position alone, and greedy ids."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = {}
    for name, arguments in cases().items():
        inputs = processor(**arguments)
        logits = model(**inputs).logits
        found[f"{name}.logits"] = (logits if len(logits) == 1 else logits[:, -1:])[..., ::5].contiguous()
        ids = model.generate(**inputs, min_new_tokens=NEW, max_new_tokens=NEW)
        found[f"{name}.ids"] = ids[:, inputs["input_ids"].shape[1] :].contiguous()
    return found


def save_again(folder: Path, out: Path) -> None:
    """Load a folder and write it to another one."""
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(out)
    AutoProcessor.from_pretrained(folder).save_pretrained(out)


def write_golden() -> None:
    """Export the folder without its weights, and store what it answers."""
    with tempfile.TemporaryDirectory() as place:
        shutil.rmtree(FOLDER, ignore_errors=True)
        write_folder(FOLDER, toy.write_all(Path(place)))
        (FOLDER / "model.safetensors").unlink()
        (FOLDER / "README.md").unlink()
        fill_folder(Path(place) / "filled")
        save_file(answer(Path(place) / "filled"), ANSWERS)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_golden()
    else:
        source, target = Path(sys.argv[1]), Path(sys.argv[2])
        save_file(answer(source), target / "answers.safetensors")
        save_again(source, target / "again")
