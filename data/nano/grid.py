"""Rows of the paper's Tables 4 and 5 in miniature, for ``tools/run_experiments.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE

COMPONENTS = "Components (Table 4 of the paper: Vicuna-7B, LLaVA-1.5's data)"
FUSIONS = "Fusion (Table 5; all with objects)"
MERGERS = "Merging of objects (Table 5; all with Conv-Gate)"
# What the frozen encoders give is computed once for all runs, and texts are tokenized once. Patch info mining has a
# folder of its own: it alone reads the maps of all stages, which are much for the other rows to read past. The LLM is
# one that has read objects beside poor maps, gates start half open, and box tokens are as long as objects were in its
# text: see "The plateau of stage 1" in README.md.
FEATURES, TOKENS = "data/nano/generated/features", "data/nano/generated/tokens"
FEATURE_CACHE = "train_dataloader.dataset.caches.feature_cache"
TOKEN_CACHE = "train_dataloader.dataset.caches.token_cache"
LLM = "data/nano/object_llm"
NO_GATE = ("low_only", "objects", "resampler", "channel_concat", "patch_info_mining")
# One attention in place of a projector does not learn at the miniature's 4e-3; this is the paper's.
LEARNING_RATE = {"resampler": 1e-3}
NO_BOX_TOKENS = ("low_only", "convgate", "boxes_into_picture")
FOLDERS = {"full": f"{FEATURES}/full", "patch_info_mining": f"{FEATURES}/all_maps"}
ALL_BENCHMARKS = "python data/nano/evaluate.py {config} --checkpoint {checkpoint} --out {out}"
EVALUATE = f"{ALL_BENCHMARKS} --benchmarks nano"


def leaves(name: str) -> list[str]:
    """Both stages of a row; those of the full model have no suffix."""
    form = "configs/mg_llava_nano_{}.py" if name == "full" else f"configs/ablations/mg_llava_nano_{{}}_{name}.py"
    return [form.format(stage) for stage in ("pretrain", "instruct")]


def options(name: str) -> list[str]:
    """Changes of a row's leaves."""
    folder = FOLDERS.get(name, FOLDERS["full"])
    given = {"model.llm.path": LLM, FEATURE_CACHE: folder, TOKEN_CACHE: TOKENS}
    if name not in NO_GATE:
        given["model.fusion.gate_start"] = "0.5"
    if name not in NO_BOX_TOKENS:
        given["model.box_projector.token_norm"] = "100.0"
    if name in LEARNING_RATE:
        given["optim_wrapper.optimizer.lr"] = str(LEARNING_RATE[name])
    return [f"{key}={value}" for key, value in given.items()]


def row(name: str, title: str, group: str, published: dict[str, float]) -> dict[str, Any]:
    """A variant of the model, beside the numbers of the paper."""
    return {
        "name": name,
        "title": title,
        "group": group,
        "published": published,
        "leaves": leaves(name),
        "options": options(name),
        "seeds": [0, 1, 2, 3, 4] if group == COMPONENTS else [0, 1, 2],
    }


def components(mmb: float, seed: float, text: float) -> dict[str, float]:
    """Numbers of the paper's Table 4."""
    return {"MMB": mmb, "SEED-I": seed, "TextVQA": text}


def designs(mmb: float, star: float) -> dict[str, float]:
    """Numbers of the paper's Table 5."""
    return {"MMB": mmb, "MMStar": star}


def fill(name: str, folder: str, changes: Sequence[str] = ()) -> list[str]:
    """Commands that fill a folder with the pictures of both stages of a row, with changes of its leaves."""
    options = " ".join(["--folder", folder, *(["--cfg-options", *changes] if changes else [])])
    return [f"python tools/fill_feature_cache.py {leaf} {options}" for leaf in leaves(name)]


DATA = "python data/nano/make_data.py"

grid = {
    "name": "nano",
    "caption": "Exact match in % on 1,120 held-out questions",
    "rows": [
        row("low_only", "low resolution only", COMPONENTS, components(68.2, 64.6, 56.7)),
        row("objects", "+ objects", COMPONENTS, components(69.2, 65.0, 56.5)),
        row("convgate", "+ Conv-Gate", COMPONENTS, {}),
        row("full", "+ objects + Conv-Gate (full)", COMPONENTS, components(69.8, 65.5, 59.5)),
        row("resampler", "resampler", FUSIONS, designs(55.6, 30.5)),
        row("channel_concat", "channel concatenation", FUSIONS, designs(68.9, 32.6)),
        row("patch_info_mining", "patch info mining", FUSIONS, designs(68.3, 32.9)),
        row("boxes_into_picture", "boxes into picture (F-to-B)", MERGERS, designs(65.7, 33.3)),
        row("picture_into_boxes", "picture into boxes (B-to-F)", MERGERS, designs(67.7, 34.4)),
    ],
    "seeds": [0, 1, 2],
    "prepare": ["sh", "-c", " && ".join([DATA, *(command for item in FOLDERS.items() for command in fill(*item))])],
    "evaluate": EVALUATE,
    "metrics": {kind: f"nano:exact/kinds/{kind}" for kind in CHANCE if kind != "all"} | {"all": "nano"},
    "reference": {"chance": CHANCE},
    "plateau": 0.65,  # all rows end below 0.45, runs that stay at 0.69 and more
    "results": "data/nano/results.json",
    "report": "data/nano/RESULTS.md",
    "quick": {
        "rows": ["low_only", "objects", "convgate", "full"],
        "seeds": [0],
        "prepare": DATA,
        "options": [
            "train_cfg.max_iters=12",
            "train_cfg.max_epochs=None",
            f"{FEATURE_CACHE}=None",
        ],
        "caption": "Exact match in % after twelve steps of each stage, a look at the way alone",
        "plateau": None,
    },
}
