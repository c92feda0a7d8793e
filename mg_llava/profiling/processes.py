"""Samples a second of data-parallel training steps with one process and with several, a thread or a GPU each."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from mg_llava.profiling._measure import print_table, rounded, run_child
from mg_llava.profiling.train import add_size_arguments, case_from
from mg_llava.work.processes import free_port

HELP = "training steps of one process and of several (a thread or a GPU each) that sum their gradients: samples/s"

_HERE = "mg_llava.profiling.processes"
_PATIENCE = timedelta(minutes=10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.set_defaults(vision="nano", batch_size=4, stage=2, threads=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (1 2)")
    parser.add_argument("--boxes", type=int, default=20, help="boxes of a picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the best of each counts (default: 2)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` of the largest number of processes over the smallest, and ``samples_per_s`` by number.
    """
    case = asdict(case_from(args, boxes=args.boxes))
    counts = sorted(args.processes)
    rates = dict.fromkeys(counts, 0.0)
    for _ in range(args.rounds):  # in turns, so that a busy machine slows all of them
        for count in counts:
            rates[count] = max(rates[count], _measure(case, count, args.steps))
    first = rates[counts[0]]
    rows = [
        (str(count), rate, rate / first, f"{rate / first * counts[0] / count:.0%}") for count, rate in rates.items()
    ]
    print(f"{args.llm}, {args.vision} encoders, {args.batch_size} samples a process, {args.threads} threads each\n")
    print_table([("processes", "samples/s", "times", "of the ideal"), *rows])
    return rounded(
        {
            "speedup": rates[counts[-1]] / first,
            "samples_per_s": {str(count): rate for count, rate in rates.items()},
            "device": args.device,
        }
    )


def _measure(case: dict[str, Any], count: int, steps: int) -> float:
    """Samples a second of so many processes together."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(count) as pool:
        place = f"{_HERE}.measure_rank", case, steps, address
        work = [pool.submit(run_child, *place, rank, count) for rank in range(count)]
        seconds = max(one.result()["seconds"] for one in work)
    return count * case["batch_size"] / seconds


def measure_rank(settings: dict[str, Any], steps: int, address: str, rank: int, count: int) -> dict[str, float]:
    """Mean ``seconds`` of so many steps of one of ``count`` processes, after one more; for ``run_child``."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from mg_llava.profiling._measure import use
    from mg_llava.profiling._sizes import Case, make_batches
    from mg_llava.profiling._step import Stepper

    cuda = settings["device"].startswith("cuda")
    if cuda:
        torch.cuda.set_device(rank)
    kind = "nccl" if cuda else "gloo"
    dist.init_process_group(kind, init_method=address, rank=rank, world_size=count, timeout=_PATIENCE)
    stepper = Stepper(Case(**settings))
    if count > 1:
        shared = DistributedDataParallel(stepper.model, broadcast_buffers=False)
        stepper.forward = lambda data: shared(data, mode="loss")["loss"]
    case = Case(**{**settings, "seed": settings["seed"] + 1})  # the same work in all processes
    first, *batches = (stepper.transport(batch) for batch in make_batches(case, stepper.model, 1 + steps))
    stepper.step(first)
    dist.barrier()
    usage = use(lambda: [stepper.step(batch) for batch in batches], case.device)[1]
    dist.barrier()
    dist.destroy_process_group()
    return {"seconds": usage.seconds / steps}
