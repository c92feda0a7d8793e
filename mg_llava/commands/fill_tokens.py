"""Tokenize the texts of a training set before the run, which then groups samples by their exact lengths.

Training needs no such step: without it texts are tokenized when they are used, and lengths are estimated. Interrupted
work goes on where it was stopped. Use the same folder in the config:
dataset=dict(caches=dict(token_cache="FOLDER")).

Examples:
    mg-llava fill-tokens configs/mg_llava_vicuna7b_instruct.py --folder work_dirs/tokens --workers 16
    mg-llava fill-tokens CONFIG --cfg-options train_dataloader.dataset.data_root=/data

Exit status: 0 done, 1 the data cannot be used (the message says why), 2 wrong arguments.
"""

import argparse
import json
import sys

from mg_llava.work.numbers import whole

AFTER = "what was done is kept, the same command continues"
"""What to do after Ctrl-C."""


def main() -> int:
    """Fill the caches of all sources; the last line printed is a JSON object."""
    from mg_llava.commands._config import add_config_changes
    from mg_llava.data.config import find_dataset, load_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a training")
    parser.add_argument("--folder", help="where token caches lie (default: token_cache of the config)")
    parser.add_argument(
        "--workers", type=whole(0), default=0, help="processes that tokenize (default: this one alone)"
    )
    add_config_changes(parser)
    arguments = parser.parse_args()

    try:
        settings = find_dataset(load_config(arguments.config, arguments.cfg_options))
        folder = arguments.folder or (settings.get("caches") or {}).get("token_cache")
        if not folder:
            parser.error("the config has no token_cache; give --folder")
        caches = {**(settings.get("caches") or {}), "token_cache": folder}
        counts = fill_tokens({**settings, "caches": caches}, arguments.workers)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": folder, "records": counts}))
    return 0


def fill_tokens(settings: dict, workers: int) -> dict[str, int]:
    """Fill the caches of a data set; the number of records of each source."""
    from tqdm import tqdm

    from mg_llava.data.config import build_dataset
    from mg_llava.data.mixture import sources_of
    from mg_llava.data.text.token_fill import fill_token_cache

    counts = {}
    for source in sources_of(build_dataset(settings)):
        with tqdm(total=len(source), desc=source.name, unit=" texts") as bar:
            counts[source.name] = fill_token_cache(source, workers, bar.update)
    return counts
