"""Make training records about objects in words, coordinates and pictures from annotations or from detected boxes.

Each source is given with the folder of its pictures, and may come several times:
  --refcoco FOLDER PICTURES            refs(*).p and instances.json of RefCOCO, RefCOCO+ or RefCOCOg; COCO train2014
  --visual-genome FOLDER PICTURES      image_data.json with region_descriptions.json or relationships.json
  --flickr30k FOLDER PICTURES          Flickr30k Entities: Annotations, Sentences, train.txt, val.txt, test.txt
  --coco INSTANCES.json PICTURES       objects with classes
  --boxes BOXES RECORDS PICTURES       box file or store of tagger and detector, and the records with its ids

Writes OUT/regions.jsonl, records with "objects" that any way to write boxes serves, and OUT/report.json, in which all
pictures, objects and samples are counted with the reasons why some were left out. The same sources and seed give the
same bytes, whatever the number of processes; a run that was stopped is continued by the same command.

No record shows a picture that RefCOCO, RefCOCO+, RefCOCOg or Flickr30k test on, by name or by pixels: the splits of
the sources given are known; --reserve adds others: refs(*).p, a text file of Flickr30k ids, COCO's instances_val.json,
or any evaluation data (folder, .tsv, .json, .jsonl). "--reserve none" says that there are none. Pixels are compared
exactly: a picture that was resized or compressed again is known by its name alone.

Examples:
    mg-llava synthesize --refcoco refcoco coco/train2014 --refcoco refcocog coco/train2014 --coco \
        instances_train2017.json coco/train2017 --out data/regions --dry-run
    mg-llava synthesize --refcoco refcocog coco/train2014 --out data/regions --eval-files data/eval/refcoco
    mg-llava synthesize --boxes boxes.safetensors train.json images --reserve refcocog --out data/regions \
        --mixture text_to_box=5000,caption=2000
    mg-llava synthesize ... --endpoint http://localhost:8000/v1 --model Qwen2.5-7B-Instruct --rewrite-share 0.2

Exit status: 0 done, 1 something could not be read or does not fit, 2 wrong arguments, 3 the endpoint is out of reach.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import positive, whole

AFTER = "finished work is kept, the same command continues"
"""What to do after Ctrl-C."""


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--refcoco", nargs=2, action="append", default=[], metavar=("FOLDER", "PICTURES"))
    add("--visual-genome", nargs=2, action="append", default=[], metavar=("FOLDER", "PICTURES"))
    add("--flickr30k", nargs=2, action="append", default=[], metavar=("FOLDER", "PICTURES"))
    add("--coco", nargs=2, action="append", default=[], metavar=("FILE", "PICTURES"))
    add("--boxes", nargs=3, action="append", default=[], metavar=("BOXES", "RECORDS", "PICTURES"))
    add("--reserve", action="append", default=[], metavar="PATH", help="test pictures to leave out, or none")
    add("--out", type=Path, required=True, help="folder of the result")
    add("--root", type=Path, help="folder that records' paths are relative to (default: what all pictures share)")
    add("--mixture", default="", help="samples of tasks, TASK=N,... (default: 370,000 of all tasks, see --dry-run)")
    add("--scale", type=positive, default=1.0, help="multiplies the numbers of samples (default: %(default)s)")
    add("--seed", type=whole(0), default=0, help="of all that is drawn (default: %(default)s)")
    add("--workers", type=whole(), help="processes (default: one per core)")
    add("--eval-files", type=Path, help="folder for the test splits of --refcoco, as tools/evaluate.py reads them")
    add("--dry-run", action="store_true", help="count and plan, look at no pictures; writes OUT/plan.json")
    add("--endpoint", help="base URL of an OpenAI-compatible endpoint that puts texts into other words")
    add("--model", help="name of the model there")
    add("--key-variable", default="OPENAI_API_KEY", help="environment variable that holds the key")
    add("--rewrite-share", type=float, default=0.2, help="share of texts that it rewrites (default: %(default)s)")
    arguments = parser.parse_args()
    sources = ("refcoco", "visual_genome", "flickr30k", "coco", "boxes")
    if not any(getattr(arguments, name) for name in sources):
        parser.error("give a source: " + ", ".join(f"--{name.replace('_', '-')}" for name in sources))
    if not (arguments.refcoco or arguments.flickr30k or arguments.reserve):
        parser.error("nothing says which pictures are test pictures: --reserve PATH, or --reserve none")
    if bool(arguments.endpoint) != bool(arguments.model):
        parser.error("--endpoint and --model go together")
    return arguments


def build_synthesis(arguments: argparse.Namespace, progress: Any) -> Any:
    """What the arguments ask for."""
    from mg_llava.data.synthesis.detected import BoxFileReader
    from mg_llava.data.synthesis.flickr30k import Flickr30kReader
    from mg_llava.data.synthesis.refer import CocoReader, RefCOCOReader
    from mg_llava.data.synthesis.run import Synthesis
    from mg_llava.data.synthesis.visual_genome import VisualGenomeReader
    from mg_llava.work.pool import available_cores

    readers: list[Any] = [RefCOCOReader(*given) for given in arguments.refcoco]
    readers += [VisualGenomeReader(*given) for given in arguments.visual_genome]
    readers += [Flickr30kReader(*given) for given in arguments.flickr30k]
    readers += [CocoReader(*given) for given in arguments.coco]
    readers += [BoxFileReader(*given) for given in arguments.boxes]
    root = arguments.root or Path(os.path.commonpath([reader.images.absolute() for reader in readers]))
    return Synthesis(
        readers,
        arguments.out,
        root.absolute(),
        read_reserved([path for path in arguments.reserve if path != "none"]),
        read_mixture(arguments.mixture, arguments.scale),
        arguments.seed,
        arguments.workers or available_cores(),
        build_rewriter(arguments) if arguments.endpoint else None,
        progress,
    )


def write_splits(readers: list[Any], folder: Path) -> None:
    """Write ``NAME_SPLIT.json`` for each test split of RefCOCO, RefCOCO+ and RefCOCOg."""
    from mg_llava.data.synthesis.refer import RefCOCOReader
    from mg_llava.work.atomic import write_json

    for reader in readers:
        if isinstance(reader, RefCOCOReader):
            for split, records in reader.held_out().items():
                write_json(folder / f"{reader.name}_{split}.json", records)


def read_mixture(text: str, scale: float) -> dict[str, int]:
    """Samples of each task.

    Raises:
        ValueError: A number is none.
    """
    from mg_llava.data.synthesis.shares import WANTED

    if not text:
        return {name: round(count * scale) for name, count in WANTED.items()}
    wanted = {}
    for part in text.split(","):
        name, _, count = part.strip().partition("=")
        if not count.isdecimal():
            raise ValueError(f"--mixture has {part!r}; TASK=NUMBER is needed, such as text_to_box=1000")
        wanted[name] = round(int(count) * scale)
    return wanted


def read_reserved(paths: list[str]) -> Any:
    """The test pictures of files and folders.

    Raises:
        FileNotFoundError: One does not exist.
        ValueError: One is of an unknown kind or damaged.
    """
    from mg_llava.data.synthesis.flickr30k import read_ids
    from mg_llava.data.synthesis.refer import find_refs, reserved_refs
    from mg_llava.data.synthesis.reserved import Reserved, reserved_names
    from mg_llava.inspection.doctor.leakage import hash_eval_pictures, list_eval_pictures

    reserved = Reserved()
    for path in map(Path, paths):
        if path.suffix == ".p" or (path.is_dir() and list(path.glob("refs*.p"))):
            reserved.add(reserved_refs(find_refs(path)))
        elif path.suffix == ".txt":
            reserved.ids |= {f"flickr:{int(name)}" for name in read_ids(path)}
        else:
            pictures = list_eval_pictures(path)
            named = list_image_ids(path)
            names = [picture.path or picture.name for picture in pictures]
            found = hash_eval_pictures(
                [one for one in pictures if one.opener or Path(one.path).is_file()], (0, len(names))
            )
            reserved.add(reserved_names([*names, *named]))
            reserved.hashes |= set(found.names)
    return reserved


def list_image_ids(path: Path) -> list[str]:
    """Names of COCO's pictures under ``img_id``, as XTuner's files of RefCOCO have them."""
    from mg_llava.data.records.json_stream import stream_json

    if path.suffix not in (".json", ".jsonl"):
        return []
    values = (entry.value for entry in stream_json(path))
    return [str(value["img_id"]) for value in values if isinstance(value, dict) and "img_id" in value]


def build_rewriter(arguments: argparse.Namespace) -> Any:
    """Texts in other words, by an endpoint."""
    from mg_llava.data.synthesis.rewriting import Rewriter
    from mg_llava.evaluation.judging.endpoint import EndpointJudge
    from mg_llava.evaluation.judging.protocol import JudgeRefusal, from_user

    endpoint = EndpointJudge(arguments.endpoint, arguments.model, arguments.key_variable)

    def ask(request: str) -> str | None:
        try:
            return endpoint(from_user(request), 96, 0.0)
        except JudgeRefusal:
            return None

    return Rewriter(ask, arguments.model, arguments.rewrite_share)


def main() -> int:
    """Plan, or make the records."""
    arguments = parse_arguments()
    from tqdm import tqdm

    from mg_llava.data.synthesis.report import format_synthesis
    from mg_llava.data.synthesis.run import PLAN_FILE, RECORDS_FILE
    from mg_llava.evaluation.judging.protocol import JudgeError

    bar = tqdm(unit="", delay=1)

    def progress(stage: str, done: int, count: int) -> None:
        if bar.desc != f"{stage}: ":
            bar.reset(count or None)
            bar.set_description(stage)
        bar.update(done - bar.n)

    try:
        synthesis = build_synthesis(arguments, progress)
        if arguments.eval_files:
            write_splits(synthesis.readers, arguments.eval_files)
        report = synthesis.plan() if arguments.dry_run else synthesis.run()
    except (OSError, ValueError, RuntimeError) as error:
        bar.close()
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, JudgeError) else 1
    bar.close()
    print(format_synthesis(report))
    print(f"wrote {arguments.out / (PLAN_FILE if arguments.dry_run else RECORDS_FILE)}")
    return 0
