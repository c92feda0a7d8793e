"""Measure what Lyrics' first stage has learned: retrieval, hard matches, masked items; with and without items.

Records, pictures and boxes are of the config's training unless they are given: give held-out ones. The result goes to
--out, or is printed: {"pictures", "with_items": {"text_recall_1", ..., "match"}, "without_items": {...}, "masked":
{"name_exact", "coordinate_exact", "coordinate_near", ...}}, shares of 1.

Examples:
    mg-llava measure-grounding configs/lyrics/lyrics_pretrain.py --checkpoint work_dirs/lyrics_pretrain \
        --data-path heldout.json --image-folder images --box-path heldout_boxes.json --out result.json

Exit status: 0 measured, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a first stage of Lyrics")
    parser.add_argument("--checkpoint", required=True, help=".pth file, DeepSpeed folder or work directory")
    parser.add_argument("--data-path", help="records with captions, one picture each")
    parser.add_argument("--image-folder", help="what their pictures are relative to")
    parser.add_argument("--box-path", help="their boxes with labels")
    parser.add_argument("--count", type=whole(), default=100, help="pictures, from the first (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole(), default=20, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where the result goes, as JSON")
    return parser.parse_args()


def main() -> int:
    """Load the system and measure."""
    arguments = parse_arguments()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the log
            found = _measure(arguments)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.out is None:
        print(json.dumps(found, indent=2))
    else:
        from mg_llava.work.atomic import write_json

        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, found)
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from mg_llava.data.config import build_dataset, find_dataset, load_config
    from mg_llava.evaluation.grounding import measure_grounding
    from mg_llava.models.parts import for_any_machine, kind_of
    from mg_llava.models.systems.lyrics_pretrain import LyricsPretrain
    from mg_llava.registry import MODELS
    from mg_llava.work.devices import pick_device

    config = load_config(arguments.config)
    if kind_of(config.get("model") or {"type": object}) is not LyricsPretrain:
        raise ValueError(f"{arguments.config} is no first stage of Lyrics; its model must be LyricsPretrain")
    system = MODELS.build(for_any_machine(config.model))
    system.load_pretrained(arguments.checkpoint, whole=True)
    paths = {name: getattr(arguments, name) for name in ("data_path", "image_folder", "box_path")}
    given = {name: path for name, path in paths.items() if path is not None}
    own = find_dataset(config)
    if not given and "sources" in own:
        raise ValueError("the training has several sources; give --data-path, --image-folder and --box-path")
    settings = {**own, **given}
    if given:
        settings |= {"type": "mg_llava.LLaVADataset", "data_root": None}
        settings.pop("sources", None)
    device = pick_device(arguments.device)
    return measure_grounding(system.to(device), build_dataset(settings), arguments.count, arguments.batch_size)
