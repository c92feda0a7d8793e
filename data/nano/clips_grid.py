"""What frames buy on questions about order and change, and what they cost the others, for ``run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import clips
from evaluate import CHANCE

STAGE1 = "configs/mg_llava_nano_pretrain.py"
STAGE2 = "configs/video/mg_llava_nano_instruct_clips{}.py"
PREPARE = ("make_data", "clips", "clips_llm")

grid = {
    "name": "clips",
    "caption": "Right answers in % to questions about clips of three frames, and to the miniature's (pictures)",
    "rows": [
        {"name": "middle", "title": "one middle frame", "leaves": [STAGE1, STAGE2.format("_middle")]},
        {"name": "frames", "title": "all frames", "leaves": [STAGE1, STAGE2.format("")]},
    ],
    "seeds": [0, 1, 2],
    "prepare": ["sh", "-c", " && ".join(f"python data/nano/{name}.py" for name in PREPARE)],
    "evaluate": "python data/nano/clips_benchmark.py {config} --checkpoint {checkpoint} --out {out}",
    "metrics": {kind: f"nano_clips:exact/kinds/{kind}" for kind in clips.KINDS}
    | {"pictures": "nano", "clips": "nano_clips"},
    "reference": {"chance": {**clips.CHANCE, "pictures": CHANCE["all"]}},
    "results": "data/nano/clips_results.json",
    "report": "data/nano/CLIPS.md",
    "quick": {
        "seeds": [0],
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None"],
        "caption": "Right answers in % after twelve steps of each stage, a look at the way alone",
    },
}
