"""Have a judge grade predictions; score what is written with mg-llava score.

An endpoint (any that speaks OpenAI's chat completions; the key comes from an environment variable):
    mg-llava judge mm_vet --data mm-vet.json --predictions predictions.jsonl --out judged.jsonl \
        --endpoint https://api.openai.com/v1 --model gpt-4-0613 --workers 8
A local model of Transformers:
    mg-llava judge msvd_qa --data test_q.json --data test_a.json --predictions predictions.json \
        --out judged.jsonl --local /models/Qwen2.5-7B-Instruct --device cuda
Then:
    mg-llava score mm_vet --data mm-vet.json --predictions judged.jsonl --out result.json

A run that was stopped is continued by the same command, which asks again about replies that the judge refused or that
could not be used. Exit status: 0 done, 1 some replies have no usable verdict, 2 wrong arguments or files, 3 the judge
could not be reached, or gives no verdict.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from mg_llava.evaluation.judging.endpoint import EndpointJudge
from mg_llava.evaluation.judging.protocol import JudgeError
from mg_llava.evaluation.judging.run import load_local_judge, run_judge
from mg_llava.evaluation.score import find_protocol
from mg_llava.evaluation.scoring.files import read_predictions
from mg_llava.work.numbers import whole

AFTER = "finished work is kept, the same command continues"
"""What to do after Ctrl-C."""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", help="name of a benchmark that a judge grades, such as mm_vet")
    parser.add_argument("--data", action="append", required=True, help="file or folder of the benchmark; repeatable")
    parser.add_argument("--predictions", required=True, help="the model's replies")
    parser.add_argument("--out", required=True, help="JSON lines: the predictions with this judge's replies")
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument(
        "--endpoint", help="base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    judge.add_argument("--local", help="folder of a chat model of Transformers")
    parser.add_argument("--model", help="name of the model at the endpoint")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable that holds the key")
    parser.add_argument("--device", default="cpu", help="device of the local model")
    parser.add_argument("--workers", type=whole(), default=1, help="questions under way at once (endpoints)")
    args = parser.parse_args()
    if args.endpoint and not args.model:
        parser.error("--endpoint needs --model")
    return args


def main() -> int:
    """Judge; returns the exit status."""
    args = parse_args()

    def progress(lines: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(lines, total=total, desc=f"judging {args.benchmark}", unit="reply")

    try:
        protocol = find_protocol(args.benchmark)
        requests = protocol.requests(args.data, read_predictions(args.predictions))
        judge = (
            EndpointJudge(args.endpoint, args.model, args.key_variable)
            if args.endpoint
            else load_local_judge(args.local, args.device)
        )
        workers = args.workers if args.endpoint else 1
        lines = run_judge(requests, judge, protocol, args.out, workers, progress)
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    unusable = [str(requests[i].id) for i, line in enumerate(lines) if not line["judge_accepted"]]
    print(f"{len(lines)} replies judged by {judge.name}, {len(unusable)} of them without a usable verdict: {args.out}")
    if unusable:
        print(f"the same command asks about these again: {', '.join(unusable)}", file=sys.stderr)
    return int(bool(unusable))
