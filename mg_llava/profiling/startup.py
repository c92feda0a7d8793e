"""Start of ``xtuner train``: the time to the first iteration, and which imports this package adds to XTuner's own."""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.profiling._measure import ROOT, make_miniature, print_table, rounded

HELP = (
    "start of training: time to the first iteration, and imports that this package adds, with plain XTuner beside it"
)

CONFIG = ROOT / "configs" / "mg_llava_nano_pretrain.py"
_PACKAGE = "mg_llava"

_RECORDS = 32
_PLAIN = """
import xtuner.tools.train
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from xtuner.dataset import LLaVADataset
from xtuner.dataset.samplers import LengthGroupedSampler
from xtuner.engine.hooks import EvaluateChatHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel
"""
"""Imports of a plain LLaVA config of XTuner, besides the command itself."""

_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")
_HEADER = "import time: self [us]"
_FIRST = "Iter(train)"


@dataclass(frozen=True)
class Import:
    """One module that was imported.

    Attributes:
        seconds: Without what it imports itself.
        inside: Whether a module of this package imported it, directly or not.
    """

    seconds: float
    inside: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--config", type=Path, default=CONFIG, help="config of the miniature (default: its stage 1)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the least time of a module counts (default: 2)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``to_first_iteration_s`` of the command and ``cpu_s`` of all of its run; ``imports_s`` and ``plain_imports_s``,
        of the training process and of a plain XTuner config; ``added_s``, what this package adds: ``own_s`` of its
        modules, and ``brought_s`` of others' that no plain config imports and its modules import at once; and
        ``on_demand_s``, others' that are imported later and only here, by package. ``speedup`` is plain imports to
        ours.

    Raises:
        RuntimeError: Training, or making its data, failed.
    """
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        command = _training_command(args.config, Path(folder))
        rounds = [_watch(command) for _ in range(args.rounds)]
        plain = _fastest([_watch([sys.executable, "-c", _PLAIN]).processes[-1] for _ in range(args.rounds)])
    ours = _fastest([found.processes[-1] for found in rounds])
    best = min(rounds, key=lambda found: found.first or float("inf"))
    if best.first is None:
        raise RuntimeError(f"no iteration was logged: {best.output[-2000:]}")
    result = {**split_imports(ours, plain), "to_first_iteration_s": best.first}
    result["command_imports_s"] = sum(item.seconds for item in best.processes[0].values())
    result["cpu_s"] = min(found.cpu_seconds for found in rounds)
    _print_table(result)
    return {"speedup": round(result["plain_imports_s"] / result["imports_s"], 3), **rounded(result)}


def parse_imports(text: str) -> list[dict[str, Import]]:
    """Read what ``-X importtime`` prints; one dict by module for each process that printed."""
    processes: list[dict[str, Import]] = []
    for part in text.split(_HEADER)[1:]:
        lines = [match for match in map(_LINE.search, part.splitlines()) if match]
        processes.append(_nested([(int(line[1]) / 1e6, len(line[3]), line[4]) for line in lines]))
    return processes


def _nested(block: Sequence[tuple[float, int, str]]) -> dict[str, Import]:
    """Imports of one process from (seconds, depth, name) in the order in which they ended."""
    found: dict[str, Import] = {}
    owner: int | None = None  # depth of the outermost module of this package around the line
    for seconds, depth, name in reversed(block):  # from the importing to the imported
        if owner is not None and depth <= owner:
            owner = None
        if owner is None and _top(name) == _PACKAGE:
            owner = depth
        found.setdefault(name, Import(seconds, owner is not None))
    return found


def split_imports(ours: dict[str, Import], plain: dict[str, Import]) -> dict[str, Any]:
    """Imports by origin: this package, what it brings from others, what XTuner needs anyway."""
    own = [item.seconds for name, item in ours.items() if _top(name) == _PACKAGE]
    new = {name: item for name, item in ours.items() if _top(name) != _PACKAGE and name not in plain}
    brought: dict[str, float] = defaultdict(float)
    on_demand: dict[str, float] = defaultdict(float)
    for name, item in new.items():
        (brought if item.inside else on_demand)[_top(name)] += item.seconds
    return {
        "imports_s": sum(item.seconds for item in ours.values()),
        "plain_imports_s": sum(item.seconds for item in plain.values()),
        "added_s": sum(own) + sum(brought.values()),
        "own_s": sum(own),
        "brought_s": _largest(brought),
        "on_demand_s": _largest(on_demand),
        "modules": len(own),
    }


@dataclass
class _Watched:
    """The output of a command; seconds to the first iteration; seconds of the processor."""

    output: str
    first: float | None
    cpu_seconds: float

    @property
    def processes(self) -> list[dict[str, Import]]:
        found = parse_imports(self.output)
        if not found:
            raise RuntimeError(f"nothing was imported: {self.output[-2000:]}")
        return found


def _watch(command: Sequence[str]) -> _Watched:
    """Run a command with the times of its imports."""
    folder = Path(sys.executable).parent  # `xtuner` starts `python` from PATH
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPROFILEIMPORTTIME": "1",
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    lines, first = [], None
    with subprocess.Popen(
        list(command), env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if first is None and _FIRST in line:
                first = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed with status {process.returncode}: {''.join(lines)[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Watched("".join(lines), first, cpu)


def _training_command(config: Path, folder: Path) -> list[str]:
    """``xtuner train`` on a few pictures of the miniature."""
    make_miniature(folder, stage1=_RECORDS, stage2=_RECORDS)
    data = {"data_path": "stage1.json", "image_folder": "images", "box_path": "stage1_boxes.json"}
    options = [f"train_dataloader.dataset.{key}={folder / name}" for key, name in data.items()]
    options += ["default_hooks.logger.interval=1", "train_dataloader.num_workers=0"]
    options += ["train_dataloader.persistent_workers=False"]
    xtuner = str(Path(sys.executable).parent / "xtuner")
    return [xtuner, "train", str(config), "--work-dir", str(folder / "run"), "--cfg-options", *options]


def _fastest(rounds: Sequence[dict[str, Import]]) -> dict[str, Import]:
    """The least seconds of each module over the rounds, so that what else the machine does counts less."""
    names = {name for found in rounds for name in found}
    return {name: min((r[name] for r in rounds if name in r), key=lambda item: item.seconds) for name in names}


def _largest(packages: dict[str, float], count: int = 8) -> dict[str, float]:
    """The packages that count, largest first."""
    found = [(name, seconds) for name, seconds in packages.items() if seconds >= 0.01]
    return dict(sorted(found, key=lambda item: -item[1])[:count])


def _top(name: str) -> str:
    return name.split(".", 1)[0]


def _print_table(result: dict[str, Any]) -> None:
    rows = [
        ("command to first iteration, with the times of imports", result["to_first_iteration_s"]),
        ("imports of the command `xtuner`, before training starts", result["command_imports_s"]),
        ("imports of the training process", result["imports_s"]),
        ("  the same with a plain config of XTuner", result["plain_imports_s"]),
        (f"  added by this package: its {result['modules']} modules", result["own_s"]),
        *((f"  added by this package: {name}, which they import", s) for name, s in result["brought_s"].items()),
        *((f"  on demand: {name}", seconds) for name, seconds in result["on_demand_s"].items()),
        ("processor time of the whole run", result["cpu_s"]),
    ]
    print_table([(title, f"{seconds:.3f} s") for title, seconds in rows])
