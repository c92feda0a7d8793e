"""Check the training data of a config before a training does, and say what to repair.

Reads what the config reads: records, pictures, boxes, the tokenizer and template, alone or in a mixture. What is known
of pictures is kept beside the report, so that the same command continues where it was stopped.

Examples:
    mg-llava check configs/mg_llava_nano_instruct.py
    mg-llava check CONFIG.py --workers 8 --out report.json
    mg-llava check CONFIG.py --limit 1000
    mg-llava check CONFIG.py --eval benchmarks/images MMBench_DEV_EN.tsv
    mg-llava check CONFIG.py --cfg-options train_dataloader.dataset.image_folder=/data/images

Exit status: 0 training can start, 1 it would fail, stop by its policies or learn from wrong boxes (with --strict also
if there are warnings) or the check could not be finished, 2 wrong arguments, 130 stopped.
"""

import argparse
import json
import sys
from pathlib import Path

from mg_llava.work.numbers import whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    from mg_llava.commands._config import add_config_changes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of a training")
    add_config_changes(parser)
    parser.add_argument("--eval", nargs="+", default=[], metavar="PATH", help="folders, .tsv or .json of evaluation")
    parser.add_argument("--workers", type=whole(), help="number of processes (default: one per core)")
    parser.add_argument("--limit", type=whole(), help="check this many records of each source, evenly spread")
    parser.add_argument("--examples", type=whole(0), default=3, help="shown of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON report (default: work_dirs/check_data/CONFIG.json)")
    parser.add_argument("--fresh", action="store_true", help="forget what is known of pictures")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings too")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args()
    if not arguments.config.is_file():
        parser.error(f"config {arguments.config} does not exist")
    return arguments


def main() -> int:
    """Check, print and write the report."""
    arguments = parse_arguments()
    from mg_llava.data.config import load_config
    from mg_llava.inspection.doctor import CheckOptions, ConfigError, check_training_data
    from mg_llava.work.atomic import write_text

    out = arguments.out or Path("work_dirs/check_data") / f"{arguments.config.stem}.json"
    cache = out.with_suffix(".pictures.jsonl")
    if arguments.fresh:
        cache.unlink(missing_ok=True)
    options = CheckOptions(arguments.workers, arguments.limit, cache, tuple(arguments.eval), not arguments.quiet)
    try:
        report = check_training_data(load_config(arguments.config, arguments.cfg_options), options)
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"config": str(arguments.config), **report.to_dict()}
        write_text(out, json.dumps(content, indent=1, ensure_ascii=False, default=str))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    print(report.to_text(arguments.examples))
    print(f"report: {out}")
    return int(report.errors > 0 or (arguments.strict and report.warnings > 0))
