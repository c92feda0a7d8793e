r"""Find boxes in all pictures of a data set and write a box store, a ledger of failures and a report.

Inputs are record files (.json, .jsonl, .parquet), benchmark tables (.tsv, .csv), folders, and text files with a path a
line; videos among them give sampled frames. The work is done by --processes of this machine, by the processes that
torchrun or srun started on machines that share the output folder, or by the workers of a Ray cluster. Results do not
depend on that; a killed run is continued when it is started again, with any of them. A picture that is met twice is
detected once.

OUT/boxes.safetensors opens with mg_llava's box store (by record id and by picture content); OUT/failures.jsonl names
every picture without boxes and why; OUT/work may be removed afterwards.

Detectors: owlv2:PATH, grounding-dino:PATH, detr:PATH, coco:FILE, yolo:FOLDER, boxes:FILE, proposals, or a config
(.py, .json).
Taggers: ram:CHECKPOINT, clip:FOLDER, tags:FILE, list:FILE, coco80, common, or tags separated by commas.

Examples:
    mg-llava boxes train.json --images data/images --out boxes/stage2 \
        --detector owlv2:google/owlv2-large-patch14-ensemble --tagger ram:ram_plus_swin_large_14m.pth
    torchrun --nproc_per_node 8 -m mg_llava boxes train.json --images data/images --out boxes/stage2 \
        --detector grounding-dino:IDEA-Research/grounding-dino-base --tagger coco80 --batch-size 16
    srun --ntasks-per-node 8 mg-llava boxes train.json --images data/images --out boxes/stage2 \
        --detector owlv2:PATH --tagger coco80 --engine slurm
    mg-llava boxes train.json --images data/images --out boxes/stage2 --detector owlv2:PATH \
        --tagger coco80 --engine ray
    mg-llava boxes mmbench_dev_en.tsv --out boxes/mmbench --detector proposals --json boxes.json
    mg-llava boxes data/videos --frames 8 --out boxes/videos --detector owlv2:PATH --tagger "cat, dog"
    mg-llava boxes --merge --out boxes/stage2 train.json --images data/images --detector owlv2:PATH \
        --tagger coco80

Exit status: 0 every picture has boxes or a line in the ledger, 1 something is missing or wrong, 2 wrong arguments.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="record file, table, folder or list; several become one store")
    parser.add_argument("--out", required=True, help="folder of the run and its results")
    parser.add_argument("--detector", required=True, help="what finds boxes, see above")
    parser.add_argument("--tagger", help="what says what to look for, see above")
    parser.add_argument("--images", help="folder of all pictures (default: where the input is)")
    parser.add_argument(
        "--outside-pictures",
        choices=["error", "allow"],
        default="error",
        help="pictures outside of that folder, by their path or behind a link (default: %(default)s)",
    )
    parser.add_argument(
        "--format", default="llava", help="of record files: llava, ms-swift or sharegpt (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, help="least score (default: 0.2 for OWLv2, 0.25 for Grounding DINO)"
    )
    parser.add_argument(
        "--nms-iou", type=float, help="drop overlapping boxes of a label (default: keep; training drops)"
    )
    parser.add_argument("--max-boxes", type=whole(), help="most boxes of a picture, best first (default: no limit)")
    parser.add_argument("--batch-size", type=whole(), default=8, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--task-batches", type=whole(), default=16, help="batches of a task (default: %(default)s)")
    parser.add_argument("--frames", type=whole(), default=8, help="frames of a video (default: %(default)s)")
    parser.add_argument("--workers", type=whole(), help="decoding threads (default: one per core, 16 at most)")
    parser.add_argument("--device", help="auto, cpu, cuda:0, ... (default: auto, the local rank's GPU)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="mixed precision")
    parser.add_argument("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    parser.add_argument(
        "--mode",
        choices=["reference", "exact"],
        default="reference",
        help="colors of 16-bit gray and transparent pictures, as in the model's picture_processor; in exact mode such "
        "pictures have boxes by their id alone (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=["pool", "torchrun", "slurm", "ray"],
        help="who does the work (default: torchrun where it started this, else processes of this machine)",
    )
    parser.add_argument("--processes", type=whole(), help="workers of pool (default: 1) or ray (default: one per GPU)")
    parser.add_argument("--json", metavar="FILE", help="write the boxes in the reference's layout too")
    parser.add_argument(
        "--visualize", type=whole(0), default=0, metavar="N", help="draw N pictures into OUT/visualize"
    )
    parser.add_argument("--merge", action="store_true", help="detect nothing; verify that all is done and merge again")
    return parser.parse_args()


class Bars:
    """A progress bar for each step, with pictures/s and the time left; on the first process."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.step = ""
        self.disabled = os.environ.get("RANK", "0") != "0"

    def __call__(self, step: str, done: int, count: int) -> None:
        """See ``BoxJob``."""
        from tqdm import tqdm

        if self.disabled:
            return
        if self.step != step:
            self.close()
            options = {"initial": done, "total": count, "unit": " pictures", "smoothing": 0.05}
            self.bar, self.step = tqdm(desc=step, **options), step
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def main() -> int:
    """Run, or merge, and report."""
    arguments = parse_arguments()
    from mg_llava.detection import run
    from mg_llava.detection.pipeline import pipeline_config

    names = ("threshold", "nms_iou", "max_boxes", "device", "dtype")
    try:
        pipeline = pipeline_config(arguments.detector, arguments.tagger, **{n: getattr(arguments, n) for n in names})
        kept: tuple[str, ...] = (
            "inputs",
            "out",
            "images",
            "batch_size",
            "task_batches",
            "frames",
            "apply_exif",
            "mode",
            "workers",
        )
        given = {name: getattr(arguments, name) for name in (*kept, "outside_pictures")}
        settings = run.JobSettings(pipeline=pipeline, record_format=arguments.format, **given)
        bars = Bars()
        with run.make_engine(settings, arguments.engine, arguments.processes) as engine:
            job = run.BoxJob(settings, bars, engine)
            if not arguments.merge:
                job.run()
                bars.close()
            engine.on_main(lambda: run.merge(settings))
        if os.environ.get("RANK", "0") == "0":
            if arguments.json:
                run.write_reference(run.Results(settings), arguments.json)
            for path in run.visualize(settings, arguments.visualize):
                print(f"drew {path}", file=sys.stderr)
            print(run.format_report(json.loads((Path(arguments.out) / "report.json").read_text())))
            print(f"wrote {arguments.out}/boxes.safetensors; failures, if any: {arguments.out}/failures.jsonl")
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
