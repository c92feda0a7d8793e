"""Convert box files to a store that opens at once, look into a store, verify it, or write it as JSON again.

A report with every fault and its ids is written as JSON beside the store (--report). Boxes can also be found by the
content of pictures if the pictures of a record file are hashed (--images and --records); that work goes on where it
was stopped.

Examples:
    mg-llava convert-boxes boxes.json --out boxes.safetensors
    mg-llava convert-boxes boxes.json --out boxes.safetensors --detector owlv2 --settings '{"threshold": 0.2}'
    mg-llava convert-boxes stage1.json stage2.json --out all.safetensors --drop-bad
    mg-llava convert-boxes boxes.json --out boxes.safetensors --images data/images --records data/train.json
    mg-llava convert-boxes boxes.safetensors --info
    mg-llava convert-boxes boxes.safetensors --verify
    mg-llava convert-boxes boxes.safetensors --to-json boxes.json

Exit status: 0 done and no fault found (or faulty records left out as told), 1 faults found or a file could not be
read, 2 wrong arguments.
"""

import argparse
import json
import sys
from pathlib import Path

from mg_llava.work.numbers import whole

AFTER = "nothing was written"
"""What to do after Ctrl-C."""


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", type=Path, help="box files (.json, .jsonl), or one store")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="the store to write, such as boxes.safetensors")
    what.add_argument("--info", action="store_true", help="print what the store says about itself, as JSON")
    what.add_argument("--verify", action="store_true", help="read the store from end to end")
    what.add_argument("--to-json", type=Path, metavar="FILE", help="write a store as .json or .jsonl")
    parser.add_argument("--detector", help="what found the boxes")
    parser.add_argument("--settings", type=json.loads, default={}, help="its settings, a JSON object")
    parser.add_argument("--image-size", type=whole(), nargs=2, metavar=("W", "H"), help="size that the detector saw")
    parser.add_argument("--images", type=Path, help="folder of the pictures, to find boxes by content")
    parser.add_argument("--records", type=Path, help="record file that names the pictures of --images")
    parser.add_argument("--format", default="llava", help="of that file: llava, ms-swift or sharegpt")
    parser.add_argument("--workers", type=whole(), help="processes that hash pictures (default: one per core)")
    parser.add_argument("--drop-bad", action="store_true", help="leave faulty records out instead of stopping")
    parser.add_argument("--report", type=Path, help="report of the conversion (default: OUT.report.json)")
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.records is None):
        parser.error("--images and --records go together")
    if not isinstance(arguments.settings, dict):
        parser.error("--settings is no JSON object")
    if arguments.out is None and len(arguments.source) > 1:
        parser.error("--info, --verify and --to-json take one store")
    return arguments


def convert_box_files(arguments: argparse.Namespace) -> int:
    """Write a store and its report."""
    from tqdm import tqdm

    from mg_llava.data.boxes.convert import convert_boxes
    from mg_llava.work.atomic import write_json

    journal = arguments.out.with_name(arguments.out.name + ".pictures")
    total = sum(path.stat().st_size for path in arguments.source if path.is_file())
    without = arguments.images is None
    boxes = tqdm(total=total, unit="B", unit_scale=True, desc="boxes")
    with boxes as bar, tqdm(disable=without, desc="pictures") as hashed:

        def on_pictures(done: int, count: int) -> None:
            hashed.total = count
            hashed.update(done - hashed.n)

        from mg_llava.data.boxes.hashing import hash_pictures

        where = (arguments.records, arguments.images)
        pictures = () if without else hash_pictures(*where, journal, arguments.workers, on_pictures, arguments.format)
        report = convert_boxes(
            arguments.source,
            arguments.out,
            detector=arguments.detector,
            settings=arguments.settings,
            image_size=arguments.image_size,
            bad="drop" if arguments.drop_bad else "error",
            pictures=pictures,
            progress=bar.update,
        )
    if report.written:
        journal.unlink(missing_ok=True)
    path = arguments.report or arguments.out.with_name(arguments.out.name + ".report.json")
    write_json(path, report.to_dict())
    print(report)
    print(f"{'wrote ' + str(arguments.out) if report.written else 'no store written'}; report: {path}")
    return 0 if report.written else 1


def main() -> int:
    """Do what was asked."""
    arguments = parse_arguments()
    from mg_llava.data.boxes._table import BoxTable
    from mg_llava.data.boxes.convert import verify_store, write_records

    store = arguments.source[0]
    try:
        if arguments.out is not None:
            return convert_box_files(arguments)
        if arguments.verify:
            faults = verify_store(store)
            print("\n".join(f"{store}: {fault}" for fault in faults) or f"{store}: no fault found")
            return 1 if faults else 0
        table = BoxTable.open(store)
        if arguments.info:
            print(json.dumps(table.metadata, indent=1))
        else:
            write_records(table, arguments.to_json)
            print(f"wrote {len(table)} records to {arguments.to_json}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
