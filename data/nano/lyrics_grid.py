"""What objects, items and masked items buy Lyrics: four rows of the miniature, for ``tools/run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE
from grid import FEATURE_CACHE, FEATURES

ROWS = {
    "blip2": "BLIP-2",
    "objects": "+ objects",
    "items": "+ items in captions",
    "full": "+ masked items (Lyrics)",
}


def leaves(name: str) -> list[str]:
    """Both stages of a row; the full model's leaves have no suffix."""
    suffix = "" if name == "full" else f"_{name}"
    return [f"configs/lyrics/lyrics_nano_{stage}{suffix}.py" for stage in ("pretrain", "instruct")]


# a picture is seen in every epoch of twelve runs: what the frozen encoders give is computed once. Rows differ in what
# they read of it, but for BLIP-2, which has no ConvNeXt
FOLDERS = {name: f"{FEATURES}/{'low' if name == 'blip2' else 'both'}" for name in ROWS}
PREPARE = [
    "python data/nano/make_data.py",
    *(
        f"python tools/fill_feature_cache.py {leaf} --folder {FOLDERS[name]}"
        for name in ("blip2", "full")
        for leaf in leaves(name)
    ),
]


grid = {
    "name": "lyrics",
    "caption": "Exact match in % on 1,120 held-out questions",
    "rows": [
        {
            "name": name,
            "title": title,
            "leaves": leaves(name),
            "options": [f"{FEATURE_CACHE}={FOLDERS[name]}"],
        }
        for name, title in ROWS.items()
    ],
    "seeds": [0, 1, 2],
    "prepare": ["sh", "-c", " && ".join(PREPARE)],
    "evaluate": "python data/nano/evaluate.py {config} --checkpoint {checkpoint} --out {out}",
    "metrics": {kind: f"nano:exact/kinds/{kind}" for kind in CHANCE if kind != "all"} | {"all": "nano"},
    "reference": {"chance": CHANCE},
    "results": "data/nano/lyrics_results.json",
    "report": "data/nano/LYRICS.md",
    "quick": {
        "seeds": [0],
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None"],
        "caption": "Exact match in % after twelve steps of each stage, a look at the way alone",
    },
}
