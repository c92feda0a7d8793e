"""Score the objects that a model's detector finds, before and after their refinement, by COCO's rules.

Pictures may be shifted: contrast:FACTOR, noise:SIGMA, blur:PIXELS. OUT/results.json has the twelve numbers of each arm
and what it gains over the raw objects, with a bootstrap interval over pictures; box files of each arm serve as
detections for prompts; --show draws raw and refined objects side by side. Needs the extra detect-eval. With --image
pictures are drawn alone, and nothing is scored.

Examples:
    mg-llava refine CONFIG.py --checkpoint iter_1000.pth --instances instances_val2017.json --images val2017 --out ap
    mg-llava refine CONFIG.py --checkpoint iter_1000.pth --instances instances_val2017.json --images val2017 --out ap \
        --refine head language --shift clean blur:1.5 noise:40 --show 8

    mg-llava refine CONFIG.py --checkpoint iter_1000.pth --image street.jpg --out drawn

Exit status: 0 scored, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from mg_llava.commands._model import add_model_arguments, build_predictor
from mg_llava.work.numbers import whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    from mg_llava.inference.objects import Refine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=1, boxes=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--instances", help="COCO's annotations of the pictures")
    source.add_argument("--image", nargs="+", type=Path, help="pictures to draw")
    parser.add_argument("--images", help="folder of the annotated pictures")
    parser.add_argument("--out", required=True, type=Path, help="folder for results, box files and drawings")
    parser.add_argument("--refine", nargs="+", choices=get_args(Refine), default=["head"], help="(default: head)")
    parser.add_argument("--shift", nargs="+", default=["clean"], help="clean, or KIND:SEVERITY (default: clean)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the LLM beside the detector (default: 1)")
    parser.add_argument("--question", default="Detect all objects.", help="asked while the head reads along")
    parser.add_argument("--limit", type=whole(), help="look at the first pictures alone")
    parser.add_argument("--draws", type=whole(), default=200, help="bootstrap samples (default: %(default)s)")
    parser.add_argument("--show", type=whole(0), default=0, help="draw so many pictures (default: none)")
    arguments = parser.parse_args()
    if arguments.instances and not arguments.images:
        parser.error("--instances needs --images, the folder of the pictures")
    return arguments


def main() -> int:
    """Build the model and score."""
    arguments = parse_arguments()
    from mg_llava.evaluation.detection.run import draw_refined, evaluate_objects
    from mg_llava.evaluation.detection.shifts import Shift
    from mg_llava.inference.naming import Naming
    from mg_llava.inference.objects import ObjectFinder

    try:
        shifts = [Shift.parse(text) for text in arguments.shift]
        predictor = build_predictor(arguments)
        naming = Naming(weight=arguments.weight)
        finders = {
            name: ObjectFinder(predictor.model, predictor.front_end, name, naming, arguments.question)
            for name in arguments.refine
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        for file in arguments.image or ():
            draw_refined(finders, file, arguments.out, shifts)
        if not arguments.instances:
            return 0
        settings = {"shifts": shifts, "limit": arguments.limit, "draws": arguments.draws, "show": arguments.show}
        evaluate_objects(finders, arguments.instances, arguments.images, arguments.out, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
