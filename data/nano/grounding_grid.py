"""What object images bring at equal steps: three arms of the second stage, three seeds, for ``run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from grounding import KINDS

ROWS = {
    "text": ("words and coordinates", "_text"),
    "images": ("+ object images", "_images"),
    "choices": ("+ choices among object images", ""),
}
LEAF = "configs/tiny_grounding/grounding_nano_{}.py"

grid = {
    "name": "grounding",
    "caption": "Right answers in % by kind of question: T words, C coordinates, I object image, as given -> asked for",
    "rows": [
        {
            "name": name,
            "title": title,
            "leaves": [LEAF.format("object_pretrain"), LEAF.format(f"local_alignment{end}")],
        }
        for name, (title, end) in ROWS.items()
    ],
    "seeds": [0, 1, 2],
    "prepare": "python data/nano/grounding.py",
    "evaluate": "python data/nano/grounding_benchmark.py {config} --checkpoint {checkpoint} --out {out}",
    "metrics": {kind: f"nano_regions:regions/kinds/{kind}" for kind in KINDS} | {"all": "nano_regions"},
    "results": "data/nano/grounding_results.json",
    "report": "data/nano/GROUNDING.md",
    "quick": {
        "seeds": [0],
        "options": ["train_cfg.max_iters=12", "train_cfg.max_epochs=None"],
        "caption": "Right answers in % after twelve steps of each stage, a look at the way alone",
    },
}
