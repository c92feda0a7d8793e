"""What objects, items and masked items buy Lyrics: four rows of the miniature, for ``tools/run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE

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


grid = {
    "name": "lyrics",
    "caption": "Exact match in % on 1,120 held-out questions",
    "rows": [{"name": name, "title": title, "leaves": leaves(name)} for name, title in ROWS.items()],
    "seeds": [0, 1, 2],
    "prepare": "python data/nano/make_data.py",
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
