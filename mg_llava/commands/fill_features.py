"""Run the frozen encoders over the pictures of a training set once, and keep what they give for the training.

Training then opens no pictures and runs no encoders: give the same folder to the data set,
dataset=dict(caches=dict(feature_cache="FOLDER")). Size, and whether it pays: mg-llava plan. Interrupted
work goes on where it was stopped; a picture or box that was changed is encoded again. Several data sets may
share a folder.

Examples:
    mg-llava fill-features configs/mg_llava_vicuna7b_instruct.py --folder work_dirs/features --workers 8
    torchrun --nproc_per_node 8 -m mg_llava fill-features CONFIG --folder FOLDER --dtype int8 --workers 8
    mg-llava fill-features CONFIG --folder FOLDER --check        # is everything there and fresh?
    xtuner train CONFIG --cfg-options train_dataloader.dataset.caches.feature_cache=FOLDER

Dtypes: auto is what the encoders compute in, so that a run of that precision loses nothing; int8 keeps 8 bits between
the least and the largest value of each channel of a picture, and its boxes in float16.

The last line printed is a JSON object. Exit status: 0 done, 1 it cannot be done (the message says why), 2 wrong
arguments, 3 pictures cannot be read and bad_image is "error", or --check finds pictures that are absent or stale.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import whole

INCOMPLETE = 3

AFTER = "what was done is kept, the same command continues"
"""What to do after Ctrl-C."""


def parse_arguments() -> argparse.Namespace:
    """Arguments of the command line."""
    from mg_llava.commands._config import add_config_changes
    from mg_llava.features import FEATURE_DTYPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a training")
    parser.add_argument("--folder", help="where the features lie (default: feature_cache of the config)")
    parser.add_argument(
        "--dtype", choices=("auto", *FEATURE_DTYPES), default="auto", help="how values are kept (auto)"
    )
    parser.add_argument("--batch-size", type=whole(), default=8, help="pictures that are encoded at once (8)")
    parser.add_argument(
        "--workers", type=whole(0), default=0, help="processes that open pictures (default: this one alone)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU of its own for each process, else the CPU)")
    parser.add_argument("--check", action="store_true", help="only say what is absent or stale")
    add_config_changes(parser)
    return parser.parse_args()


def main() -> int:
    """Fill or check the cache."""
    arguments = parse_arguments()
    from mg_llava.data.config import find_dataset, find_model, load_config
    from mg_llava.work.processes import Processes

    try:
        config = load_config(arguments.config, arguments.cfg_options)
        settings = find_dataset(config)
        find_model(config)
        folder = arguments.folder or (settings.get("caches") or {}).get("feature_cache")
        if not folder:
            print("error: the config has no feature_cache; give --folder", file=sys.stderr)
            return 2
        processes = Processes()
        work = check if arguments.check else fill_features
        report, complete = work(arguments, config, open_feature_sources(settings), Path(folder), processes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if processes.is_main:
        print(json.dumps({"folder": str(folder), **report}))
    return 0 if complete else INCOMPLETE


def open_feature_sources(settings: Any) -> list[Any]:
    """The sources of a data set, which reads no features."""
    from mg_llava.data.config import build_dataset
    from mg_llava.data.mixture import sources_of

    plain = {**settings, "caches": None}
    if "sources" in plain:
        plain["sources"] = [{**source, "caches": None} for source in plain["sources"]]
    return sources_of(build_dataset(plain))


def fill_features(arguments: Any, config: Any, sources: list[Any], folder: Path, processes: Any) -> tuple[dict, bool]:
    """Add what is not there; the report of all processes, and whether every picture could be read."""
    from tqdm import tqdm

    from mg_llava.data.features.cache import FeatureCache
    from mg_llava.data.features.file import FeatureWriter
    from mg_llava.data.features.fill import Pictures, about_cache, add_reports, fill_feature_cache, list_jobs
    from mg_llava.models.vision import FeatureExtractor
    from mg_llava.work.devices import pick_device

    device = pick_device(arguments.device or "auto")
    extractor = FeatureExtractor.build(config.model).to(device)
    dtype: Any = extractor.dtype_name if arguments.dtype == "auto" else arguments.dtype
    about = about_cache(sources, dtype, extractor.sizes, extractor.describe())
    writer = FeatureWriter(folder, about)
    processes.gather()  # what is read below was written before this run, in all processes alike
    jobs = list_jobs(sources, processes.rank, processes.size)
    pictures = Pictures(sources, jobs, FeatureCache(folder), extractor.sizes["pooled"] is not None)

    def extract(images: Any, boxes: list[Any]) -> Any:
        return extractor(images.to(device), [own.to(device) for own in boxes])

    with tqdm(total=len(jobs), desc=folder.name, unit=" pictures", disable=not processes.is_main) as bar:
        batch_size, workers = arguments.batch_size, arguments.workers
        reports = processes.together(
            lambda: fill_feature_cache(pictures, extract, writer, dtype, batch_size, workers, bar.update)
        )
    report = add_reports(reports)
    for message in report["unreadable"]:
        print(f"cannot be read: {message}", file=sys.stderr)
    skips = all(source.faults.bad_image == "skip" for source in sources)
    return {"dtype": dtype, **report}, skips or not report["pictures"].get("unreadable")


def check(arguments: Any, config: Any, sources: list[Any], folder: Path, processes: Any) -> tuple[dict, bool]:
    """Look at every picture; the numbers by state of all processes, and whether all are known."""
    from collections import Counter

    from tqdm import tqdm

    from mg_llava.data.features.cache import FeatureCache
    from mg_llava.data.features.fill import Pictures, list_jobs, survey_cache

    cache = FeatureCache(folder)
    jobs = list_jobs(sources, processes.rank, processes.size)
    with tqdm(total=len(jobs), desc=folder.name, unit=" pictures", disable=not processes.is_main) as bar:
        findings = Pictures(sources, jobs, cache, cache.holds_boxes)
        own = processes.together(lambda: survey_cache(findings, arguments.workers, bar.update))
    counts: Counter = sum(own, Counter())
    return {"dtype": cache.about["dtype"], "pictures": dict(counts)}, not (counts["absent"] or counts["changed"])
