"""Names before box tokens: questions that name boxes, and what names cost the others, for ``run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE

STAGE1, STAGE2 = "configs/mg_llava_nano_pretrain.py", "configs/mg_llava_nano_instruct.py"
NAMES = ("which", "relation")

grid = {
    "name": "named",
    "caption": "Right answers in % to the miniature's questions, and to two kinds that name boxes (obj1, obj2, ...)",
    "rows": [
        {"name": "full", "title": "full", "leaves": [STAGE1, STAGE2]},
        {
            "name": "named",
            "title": "named boxes",
            "leaves": [STAGE1, "configs/variants/mg_llava_nano_instruct_named.py"],
        },
    ],
    "seeds": [0, 1, 2],
    "prepare": "python data/nano/grounding.py",
    "evaluate": "python data/nano/grounding_benchmark.py {config} --checkpoint {checkpoint} --out {out} --named",
    "metrics": {name: f"nano_names:regions/kinds/{name}" for name in NAMES}
    | {kind: f"nano:exact/kinds/{kind}" for kind in CHANCE if kind != "all"}
    | {"all": "nano"},
    "reference": {"chance": {**CHANCE, "which": 0.1, "relation": 0.5}},
    "results": "data/nano/named_results.json",
    "report": "data/nano/NAMED.md",
    "quick": {
        "seeds": [0],
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None"],
        "caption": "Right answers in % after twelve steps of each stage, a look at the way alone",
    },
}
