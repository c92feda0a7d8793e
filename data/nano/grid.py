"""What each branch buys: four variants of the miniature, three seeds, for ``tools/run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE

ROWS = {"low_only": "low resolution only", "objects": "+ objects", "convgate": "+ Conv-Gate", "full": "full"}
EVALUATE = "python data/nano/evaluate.py {config} --checkpoint {checkpoint} --out {out}"


def leaves(name: str) -> list[str]:
    """Both stages of a variant; the full model's leaves have no suffix."""
    form = "configs/mg_llava_nano_{}.py" if name == "full" else f"configs/ablations/mg_llava_nano_{{}}_{name}.py"
    return [form.format(stage) for stage in ("pretrain", "instruct")]


grid = {
    "name": "nano",
    "caption": "Exact match in % on 1,120 held-out questions",
    "rows": [{"name": name, "title": title, "leaves": leaves(name)} for name, title in ROWS.items()],
    "seeds": [0, 1, 2],
    "prepare": "python data/nano/make_data.py",
    "evaluate": EVALUATE,
    "metrics": {kind: f"nano:exact/kinds/{kind}" for kind in CHANCE if kind != "all"} | {"all": "nano"},
    "reference": {"chance": CHANCE},
    "results": "data/nano/results.json",
    "report": "data/nano/RESULTS.md",
    "quick": {
        "seeds": [0],
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None"],
        "caption": "Exact match in % after twelve steps of each stage, a look at the way alone",
    },
}
