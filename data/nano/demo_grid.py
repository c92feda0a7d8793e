"""What ``tools/demo.py`` trains: the full model and the low resolution alone, by their leaves as they are."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from grid import ALL_BENCHMARKS
from grid import grid as whole

NAMES = ("low_only", "full")

grid = {
    "name": "demo",
    "rows": [{**row, "options": []} for row in whole["rows"] if row["name"] in NAMES],
    "seeds": [0],
    "prepare": "python data/nano/make_data.py",
    "evaluate": ALL_BENCHMARKS,
    **{key: whole[key] for key in ("metrics", "reference", "plateau")},
}
