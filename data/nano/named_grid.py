"""Names before box tokens: questions that name boxes, and what names cost the others, for ``run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import CHANCE

FULL = ["configs/mg_llava_nano_pretrain.py", "configs/mg_llava_nano_instruct.py"]
NAMED = ["configs/variants/mg_llava_nano_pretrain_named.py", "configs/variants/mg_llava_nano_instruct_named.py"]
NAMES = ("which", "relation")
# What the frozen encoders give is computed once for all runs. Both rows have an LLM that has read names in text, box
# tokens as long as objects were there, and a gate that starts half open, as in grid.py; they differ in names and the
# questions about them, which take 100 steps more of stage 1 and 125 of stage 2, and in lists beside these in stage 2.
FEATURES = "data/nano/generated/features/full"
CACHE = "train_dataloader.dataset.caches.feature_cache"
OPTIONS = {
    "model.llm.path": "data/nano/named_llm",
    "model.fusion.gate_start": "0.5",
    "model.box_projector.token_norm": "10.0",
    CACHE: FEATURES,
}
PREPARE = [
    "python data/nano/grounding.py",
    *(f"python tools/fill_feature_cache.py {leaf} --folder {FEATURES}" for leaf in (*FULL, *NAMED)),
]

grid = {
    "name": "named",
    "caption": "Right answers in % to the miniature's questions, and to two kinds that name boxes (obj1, obj2, ...)",
    "rows": [
        {"name": name, "title": title, "leaves": leaves, "options": [f"{k}={v}" for k, v in OPTIONS.items()]}
        for name, title, leaves in (("full", "full", FULL), ("named", "named boxes", NAMED))
    ],
    "seeds": [0, 1, 2],
    "prepare": ["sh", "-c", " && ".join(PREPARE)],
    "evaluate": "python data/nano/grounding_benchmark.py {config} --checkpoint {checkpoint} --out {out} --named",
    "metrics": {name: f"nano_names:regions/kinds/{name}" for name in NAMES}
    | {kind: f"nano:exact/kinds/{kind}" for kind in CHANCE if kind != "all"}
    | {"all": "nano"},
    "reference": {"chance": {**CHANCE, "which": 0.1, "relation": 0.5}},
    "results": "data/nano/named_results.json",
    "report": "data/nano/NAMED.md",
    "quick": {
        "seeds": [0],
        "prepare": "python data/nano/grounding.py",
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None", f"{CACHE}=None"],
        "caption": "Right answers in % after twelve steps of each stage, a look at the way alone",
    },
}
