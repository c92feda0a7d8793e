"""Twenty kills at random moments over all tools that write for long, full disks and read-only folders.

Tools run in forked children of this process, whose imports they share; a kill is a real SIGKILL. A tool that starts
again leaves what an undisturbed one leaves. Pools and engines of several processes have tests of their own.
"""

import builtins
import errno
import importlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.registry import DATASETS
from tests import toy
from tests.detection import toys
from tests.end_to_end.conftest import Project
from tests.run import ROOT, run_tool, train_here
from tests.tools.test_evaluate import CONFIG as ANSWERING
from tests.tools.test_evaluate import write_mmbench

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A tool at work on a folder of its own."""

    kills: int
    run: Callable[[Path], Any]
    """Starts it, or goes on with what is there; a status or a message that is not empty is a failure."""
    read: Callable[[Path], Any]
    """The result, to compare."""
    artefact: str
    """Path of what it leaves, below the folder."""


# -- tools ------------------------------------------------------------------------------------------------------------


IMPORTS = (
    "mg_llava.conversion",
    "mg_llava.detection",
    "mg_llava.evaluation.suite",
    "mg_llava.inference",
    "mg_llava.engine.resume",
    "mmengine.runner",
    "peft",
    "timm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.owlv2.modeling_owlv2",
    "xtuner.tools.train",
)
"""What children would import otherwise, each of them anew."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, toy_paths: dict[str, str]) -> Project:
    for name in IMPORTS:
        importlib.import_module(name)
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "configs" / "_base_", folder / "configs" / "_base_")
    made = Project(folder, toy_paths, toy.write_data(folder / "data"))
    toys.write_owlv2(folder / "owlv2")
    rows = [{"id": number, **box(number), "width": 90, "height": 80} for number in range(3000)]
    (folder / "boxes.json").write_text(json.dumps(rows))
    images = [{"id": number, "image": f"{number}.png"} for number in range(12)]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "records.json").write_text(json.dumps(images))
    model = toy.model_config(toy_paths, tuning="full")
    text = ANSWERING.format(model=model, llm=toy_paths["llm"], canvas=toy.CANVAS)
    (folder / "answering.py").write_text(text)
    torch.save({"state_dict": toy.build_model(toy_paths, tuning="full").state_dict()}, folder / "iter_1.pth")
    write_mmbench(folder / "MMBench_DEV_EN.tsv", rows=30)
    return made


def box(number: int) -> dict[str, list]:
    return {"boxes": [[1, 2, 3 + number % 70, 40]] * 3, "scores": [0.9, 0.5, 0.1], "labels": ["a", "b", f"c{number}"]}


def status_of(name: str, *arguments: object) -> Any:
    done = run_tool(name, *arguments)
    return done.status and f"{done.status}: {done.out[-3000:]}{done.err[-3000:]}"


def make(name: str, project: Project) -> Case:
    """The case of a tool."""
    return globals()[f"_{name}"](project)


def _train(project: Project) -> Case:
    config = project.config("killed", "pretrain", batch_size=4, seed=0, lr=1e-3)

    def run(folder: Path) -> str:
        pointer = folder / "last_checkpoint"
        resume = ["--resume", pointer.read_text()] if pointer.is_file() else []
        output = train_here(config, "--work-dir", folder, "--seed", 0, *resume)
        return "" if (folder / "iter_4.pth").exists() else output[-3000:]

    return Case(4, run, lambda folder: tensors(load_training_checkpoint(folder / "iter_4.pth")), "iter_4.pth")


def _convert_checkpoint(project: Project) -> Case:
    source, config = project.folder / "iter_1.pth", ["--config", project.folder / "answering.py"]

    def run(folder: Path) -> Any:
        return status_of("convert_checkpoint", source, folder / "hf", "--to", "hf", "--overwrite", *config)

    return Case(3, run, lambda folder: files(folder / "hf"), "hf")


def _convert_boxes(project: Project) -> Case:
    def run(folder: Path) -> Any:
        return status_of("convert_boxes", project.folder / "boxes.json", "--out", folder / "boxes.safetensors")

    return Case(3, run, lambda folder: (folder / "boxes.safetensors").read_bytes(), "boxes.safetensors")


def _shard_pictures(project: Project) -> Case:
    where = [project.folder / "records.json", "--images", project.folder]

    def run(folder: Path) -> Any:
        return status_of("shard_pictures", *where, "--out", folder / "shards", "--size", "20KB", "--workers", 2)

    def read(folder: Path) -> Any:
        return {path.name: path.read_bytes() for path in (folder / "shards").glob("*.tar")}

    return Case(2, run, read, "shards")


def _fill_token_cache(project: Project) -> Case:
    return _cache(project, 2, "fill_token_cache", "token_cache")


def _fill_feature_cache(project: Project) -> Case:
    return _cache(project, 3, "fill_feature_cache", "feature_cache", "--batch-size", 1)


def _cache(project: Project, kills: int, tool: str, kind: str, *arguments: object) -> Case:
    config = project.config(kind, "instruct", batch_size=4, seed=0, pretrained_pth=None)

    def read(folder: Path) -> Any:
        from mmengine.config import Config

        dataset = Config.fromfile(config).train_dataloader.dataset
        dataset.caches = {kind: str(folder / kind)}
        filled = DATASETS.build(dataset)
        assert filled.features is None or filled.features.missing == "error"
        samples = [filled[index] for index in range(len(filled))]
        return [
            (
                one["input_ids"],
                [{key: np.asarray(a).tobytes() for key, a in f.items()} for f in one.get("features", ())],
            )
            for one in samples
        ]

    return Case(kills, lambda folder: status_of(tool, config, "--folder", folder / kind, *arguments), read, kind)


def _generate_boxes(project: Project) -> Case:
    where = [project.folder / "records.json", "--images", project.folder]
    options = ["--detector", f"owlv2:{project.folder / 'owlv2'}", "--tagger", "cat, dog", "--threshold", 0.1]
    sizes = ["--batch-size", 1, "--task-batches", 1, "--workers", 1]

    def run(folder: Path) -> Any:
        return status_of("generate_boxes", *where, "--out", folder, *options, *sizes)

    return Case(3, run, lambda folder: (folder / "boxes.safetensors").read_bytes(), "boxes.safetensors")


def _eval_mmbench(project: Project) -> Case:
    model = [project.folder / "answering.py", "--checkpoint", project.folder / "iter_1.pth", "--device", "cpu"]
    options = ["--data", project.folder / "MMBench_DEV_EN.tsv", "--max-new-tokens", 4, "--batch-size", 2]

    def run(folder: Path) -> Any:
        return status_of("eval_mmbench", *model, *options, "--out", folder)

    def read(folder: Path) -> Any:
        results = json.loads((folder / "results.json").read_text())["benchmarks"]["mmbench_dev_en"]
        return results["score"], (folder / "mmbench_dev_en" / "predictions.jsonl").read_bytes()

    return Case(2, run, read, "mmbench_dev_en/predictions.jsonl")


def tensors(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files but hidden ones, which a killed writer may leave."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


CASES = (
    "train",
    "shard_pictures",
    "convert_checkpoint",
    "convert_boxes",
    "fill_token_cache",
    "fill_feature_cache",
    "generate_boxes",
    "eval_mmbench",
)


# -- children ---------------------------------------------------------------------------------------------------------


def start(work: Callable[[], Any]) -> tuple[Any, Any]:
    """Do something in a forked child; the process, and where it says what went wrong."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the parent are not here
        tqdm.set_lock(threading.RLock())  # processes share theirs, and one that is killed with it keeps it
        try:
            failure = work()
        except BaseException as error:
            failure = repr(error)
        theirs.send(str(failure or ""))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    theirs.close()
    return process, ours


def finish(work: Callable[[], Any]) -> str:
    """What went wrong in a child that does something; empty for nothing."""
    process, said = start(work)
    assert said.poll(300), "the child hangs"
    message = said.recv()
    process.join()
    return message


def killed(work: Callable[[], Any], delay: float) -> float | None:
    """Kill a child after a while; the seconds that it took where it has ended before."""
    began = time.monotonic()
    process, said = start(work)
    took = time.monotonic() - began if said.poll(delay) else None
    process.kill()
    process.join()
    return took


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_killed_tools_go_on(name: str, project: Project, tmp_path: Path) -> None:
    case, draw = make(name, project), random.Random(name)
    duration = math.inf  # of the fastest run: the machine may be busy with other things in any of them
    for folder in (tmp_path / "whole", tmp_path / "timed"):  # the first one has files in memory that the second reads
        folder.mkdir()
        began = time.monotonic()
        assert finish(lambda: case.run(folder)) == ""  # noqa: B023
        duration = min(duration, time.monotonic() - began)
    whole = case.read(tmp_path / "whole")
    assert case.read(tmp_path / "timed") == whole
    for number in range(case.kills):
        share = draw.uniform(0.05, 0.95)
        for attempt in range(6):  # a child may have ended before: then it is killed earlier
            folder = tmp_path / f"killed_{number}_{attempt}"
            folder.mkdir()
            took = killed(lambda: case.run(folder), share * duration / 2**attempt)  # noqa: B023
            if took is None:
                break
            duration = min(duration, took)
        else:
            pytest.fail(f"{name} always ended within {share * duration / 32:.3f} s")
        assert finish(lambda: case.run(folder)) == ""  # noqa: B023
        assert case.read(folder) == whole


def test_at_least_twenty_kills(project: Project) -> None:
    assert sum(make(name, project).kills for name in CASES) == 22


# -- disks ------------------------------------------------------------------------------------------------------------


LIMITS = {"shard": 5000, "feature": 2000, "checkpoint": 4000, "mmbench": 4000}
"""Bytes of a file on a full disk, where a tool needs room for shared memory and the copy that mmengine reads."""


def fill_disk(folder: Path) -> None:
    """No file of this process may grow beyond a little, shared memory included."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = next((size for name, size in LIMITS.items() if name in folder.name), 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def make_read_only(folder: Path) -> None:
    """This process, whose user may write everywhere, is refused what changes a folder."""

    def refuse(function: Any, is_change: Callable[..., bool]) -> Any:
        def call(path: Any, *arguments: Any, **settings: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder):
                if is_change(*arguments, **settings):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *arguments, **settings)

        return call

    def writes(mode: str = "r", *arguments: Any, **settings: Any) -> bool:
        return bool(set(mode) & set("wxa+"))

    def always(*arguments: Any, **settings: Any) -> bool:
        return True

    io.open = builtins.open = refuse(builtins.open, writes)  # type: ignore[misc]
    os.open = refuse(os.open, lambda flags, *_, **__: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    for name in ("mkdir", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, refuse(getattr(os, name), always))


DISKS = {"full": (fill_disk, "full"), "read-only": (make_read_only, "Read-only file system")}


@pytest.mark.parametrize("name", CASES[1:])
@pytest.mark.parametrize("fault", DISKS)
def test_disks_that_take_nothing(name: str, fault: str, project: Project, tmp_path: Path) -> None:
    """One message that names the place; what was there stays, and the tool goes on when there is room."""
    case, (spoil, message) = make(name, project), DISKS[fault]
    whole, folder = tmp_path / "whole", tmp_path / f"spoilt_{name}"
    whole.mkdir()
    assert finish(lambda: case.run(whole)) == ""
    replaces = name.startswith("convert_")
    if replaces:
        shutil.copytree(whole, folder)
    else:
        folder.mkdir()
    before = files(folder)

    def spoilt() -> Any:
        spoil(folder)
        return case.run(folder)

    said = finish(spoilt)
    assert message in said and str(folder) in said and "Traceback" not in said
    if replaces:
        assert files(folder) == before
    assert finish(lambda: case.run(folder)) == ""
    assert case.read(folder) == case.read(whole)
