"""Plan a training run, or what a model takes to answer, without starting it: no weights, data or GPU are needed.

Prints trained parameters of each part, FLOPs of a sample, memory on one GPU for every DeepSpeed setting, steps, hours,
size and break-even of a feature cache, missing files, and options that cannot work together. Of a Hugging Face folder
of ours, or a hub id: parameters, memory of its weights, and how many conversations fit on one GPU.

Examples:
    mg-llava plan configs/mg_llava_vicuna7b_instruct.py --gpus 8 --gpu A100-80G
    mg-llava plan configs/mg_llava_yi34b_instruct.py --gpus 32 --deepspeed deepspeed_zero3 --mfu 0.35
    mg-llava plan CONFIG --gpus 8 --gpu A100-80G --ignore-missing --json plan.json   # in CI
    mg-llava plan CONFIG --cfg-options train_dataloader.batch_size=8
    mg-llava plan my-model --gpu RTX4090-24G

Exit status: 0 it can run, 1 it cannot (options, memory), 2 wrong arguments or config, 3 files are missing.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import positive, whole


def parse_arguments() -> argparse.Namespace:
    """Arguments of the command line."""
    from mg_llava.commands._config import add_config_changes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", metavar="CONFIG", help="config of a training, Hugging Face folder of ours, or hub id"
    )
    parser.add_argument("--gpus", type=whole(), default=8, help="how many GPUs (8)")
    parser.add_argument("--gpu", default="A100-80G", help="kind of GPU (A100-80G); a wrong one lists all")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the GPUs' throughput that is used (0.4)")
    parser.add_argument("--deepspeed", help="the setting that must fit, such as deepspeed_zero2, or none")
    parser.add_argument("--text-tokens", type=whole(), help="text of a typical sample")
    parser.add_argument("--boxes", type=whole(0), default=5, help="box tokens of a typical sample (5)")
    parser.add_argument(
        "--frames", type=whole(0), default=0, help="a typical sample is about a video of so many frames"
    )
    parser.add_argument("--samples", type=whole(0), help="samples of an epoch, where the data is not here")
    parser.add_argument("--disk", type=positive, default=2.0, help="GB/s at which all GPUs read a feature cache (2)")
    parser.add_argument("--architectures", type=Path, help="folder with sizes of unpublished models, in NAME.json")
    add_config_changes(parser)
    parser.add_argument("--ignore-missing", action="store_true", help="missing files do not change the exit status")
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON; - prints it in place of the text")
    return parser.parse_args()


def _of_training(arguments: argparse.Namespace, gpu: Any) -> Any:
    from mg_llava.data.config import load_config
    from mg_llava.planning import make_plan

    return make_plan(
        load_config(arguments.config, arguments.cfg_options),
        gpu,
        arguments.gpus,
        arguments.mfu,
        arguments.deepspeed,
        arguments.text_tokens,
        arguments.boxes,
        arguments.samples,
        arguments.architectures,
        arguments.disk * 1e9,
        arguments.frames,
    )


def _of_model(arguments: argparse.Namespace, gpu: Any) -> Any:
    from mg_llava.models.weights.folders import find_folder
    from mg_llava.planning.answers import plan_answers

    return plan_answers(find_folder(arguments.config, weights=False), gpu)


def main() -> int:
    """Make and show the plan."""
    arguments = parse_arguments()
    with contextlib.redirect_stdout(sys.stderr):  # the log, whose handler keeps the stream that it finds first
        from mg_llava.models.weights.folders import is_model
        from mg_llava.planning.gpus import find_gpu
        from mg_llava.planning.plan import MISSING, OK, Plan
        from mg_llava.planning.report import describe
        from mg_llava.work.atomic import write_json

    try:
        with contextlib.redirect_stdout(sys.stderr):
            gpu = find_gpu(arguments.gpu)
            plan = _of_model(arguments, gpu) if is_model(arguments.config) else _of_training(arguments, gpu)
        if arguments.json not in (None, "-"):
            write_json(arguments.json, plan.to_dict())
    except (OSError, ValueError, AttributeError, KeyError) as error:
        print(f"error: {arguments.config}: {error}", file=sys.stderr)
        return 2
    if arguments.json == "-":
        print(json.dumps(plan.to_dict()))
    else:
        print(describe(plan) if isinstance(plan, Plan) else plan.describe())
    return OK if plan.status == MISSING and arguments.ignore_missing else plan.status
