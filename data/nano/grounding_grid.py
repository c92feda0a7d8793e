"""What object images bring at equal steps: arms of the second stage on two bases, for ``run_experiments.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from grounding import KINDS

LOW, BOTH = "Low-resolution encoder alone", "Both encoders, through the Conv-Gate"
ROWS = {
    "text": ("words and coordinates", LOW, "", "_text"),
    "images": ("+ object images", LOW, "", "_images"),
    "choices": ("+ choices among object images", LOW, "", ""),
    "gate_text": ("words and coordinates", BOTH, "_gate", "_gate_text"),
    "gate_images": ("+ object images", BOTH, "_gate", "_gate"),
}
LEAF = "configs/tiny_grounding/grounding_nano_{}.py"

grid = {
    "name": "grounding",
    "caption": "Right answers in % by kind of question: T words, C coordinates, I object image, as given -> asked for",
    "rows": [
        {
            "name": name,
            "title": title,
            "group": base,
            "leaves": [LEAF.format(f"object_pretrain{first}"), LEAF.format(f"local_alignment{second}")],
        }
        for name, (title, base, first, second) in ROWS.items()
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
