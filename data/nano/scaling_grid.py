"""Right answers against recall and number of boxes, resolution and LLM, for ``run_experiments.py``.

Of the full model, and of the low resolution with objects, which has no other way to see a digit well, against recall.
Runs lie beside those of ``grid.py``, so that both are not trained again. Each LLM of another depth takes some minutes
of a core first.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import grid as parts
from evaluate import CHANCE

BOXES = f"{parts.EVALUATE} --box-file data/nano/generated/heldout_boxes_{{name}}.json"
RECALL = (0, 25, 50, 75, 100)
NUMBER = (0, 1, 2, 4, 8, 16, 32)
SIZES, OWN_SIZE = (128, 192, 256, 320), 256
MODELS = ("model", "train_dataloader.dataset.tokens.model")
SIZE_KEYS = (
    *(f"{model}.high_res_encoder.image_size" for model in MODELS),
    *(
        f"{owner}picture_processor.image_size"
        for owner in ("", "test_dataloader.dataset.", "train_dataloader.dataset.")
    ),
)
LLMS = "data/nano/generated/llm_layers{}"
PARAMETERS = {1: 0.39, 2: 0.66, 4: 1.20}
"""Of LLMs, in millions, by the number of their layers; more than four take an hour and more to make."""
PRETRAIN, GO_ON = "python data/nano/pretrain_llm.py", "python data/nano/pretrain_objects.py"


def row(name: str, title: str, group: str, x: float, *options: str) -> dict[str, Any]:
    """The full model with another LLM or resolution, at a place of its group's axis."""
    given = {"leaves": parts.leaves("full"), "options": [*parts.options("full"), *options]}
    return {"name": name, "title": title, "group": group, "x": x, "evaluate": parts.EVALUATE, **given}


def boxes(name: str, title: str, group: str, x: int, model: str = "full") -> dict[str, Any]:
    """A row of ``grid.py`` asked with a box file of ``box_files.py``."""
    own = {"leaves": parts.leaves(model), "options": parts.options(model)}
    own["evaluate"] = BOXES.replace("{name}", name.removeprefix(f"{model}_"))
    return {**row(name, title, group, x), **own}


def size(side: int) -> dict[str, Any]:
    """The full model with high-resolution pictures of another size."""
    changes = [] if side == OWN_SIZE else [*size_changes(side), f"{parts.FEATURE_CACHE}={features(side)}"]
    return row(f"size{side}", f"{side} px", C, side, *changes)


def size_changes(side: int) -> list[str]:
    """Changes of a leaf for high-resolution pictures of another size."""
    # maps are brought to the grid of CLIP's tokens
    return [f"{key}={side}" for key in SIZE_KEYS] + [f"{model}.fusion.unequal_grids=interpolate" for model in MODELS]


def features(side: int) -> str:
    """The folder of what the frozen encoders give for pictures of a size."""
    return f"{parts.FEATURES}/size{side}"


def depth(layers: int) -> dict[str, Any]:
    """The full model with an LLM of so many layers."""
    changes = [] if layers == 4 else [f"model.llm.path={LLMS.format(layers)}"]
    return row(f"layers{layers}", f"{layers} layer{'s' if layers > 1 else ''}", D, PARAMETERS[layers], *changes)


def llm(layers: int) -> list[str]:
    """Commands that make an LLM of so many layers, unless it is there."""
    first, last = LLMS.format(f"{layers}_start"), LLMS.format(layers)
    return [
        f"(test -f {first}/config.json || {PRETRAIN} --layers {layers} --out {first})",
        f"(test -d {last} || ({GO_ON} --start {first} --out {last}_part && mv {last}_part {last}))",
    ]


DEPTHS = [layers for layers in PARAMETERS if layers != 4]
FILES = f"python data/nano/box_files.py --recall {' '.join(map(str, RECALL))} --boxes {' '.join(map(str, NUMBER))}"
PREPARE = [
    parts.DATA,
    *parts.fill("full", parts.FOLDERS["full"]),
    *(
        command
        for side in SIZES
        if side != OWN_SIZE
        for command in parts.fill("full", features(side), size_changes(side))
    ),
    FILES,
    *(command for layers in DEPTHS for command in llm(layers)),
]
A, B = "digits that boxes find, %", "boxes of a picture"
LOW = "digits that boxes find, %, low + objects"
C, D = "side of the high-resolution picture, px", "parameters of the LLM, M"

grid = {
    "name": "nano",
    "caption": "Exact match in % on 1,120 held-out questions, of the full model unless a table says another",
    "rows": [
        *(boxes(f"recall{percent}", f"{percent} % found", A, percent) for percent in RECALL),
        *(boxes(f"objects_recall{share}", f"low, {share} % found", LOW, share, "objects") for share in RECALL),
        *(boxes(f"number{number}", f"{number} boxes", B, number) for number in NUMBER),
        *(size(side) for side in SIZES),
        *(depth(layers) for layers in PARAMETERS),
    ],
    "seeds": [0, 1, 2],
    "prepare": ["sh", "-c", " && ".join(PREPARE)],
    "evaluate": parts.EVALUATE,
    "metrics": parts.grid["metrics"],
    "reference": {"chance": CHANCE},
    "plateau": 0.65,
    "results": "data/nano/scaling_results.json",
    "report": "data/nano/SCALING.md",
    "quick": {
        **parts.grid["quick"],
        "rows": ["recall0", "number32", "size128"],
        "prepare": ["sh", "-c", f"{parts.DATA} && {FILES}"],
    },
}
