"""One checkpoint on a set of benchmarks, under one or several settings of boxes and fusion."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

from mg_llava.data.pictures.files import to_rgb
from mg_llava.evaluation.ablation import Difference, Setting, applied, compare, format_differences
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark
from mg_llava.evaluation.box_source import BoxSource, build_box_source
from mg_llava.evaluation.catalog import benchmark_config, default_boxes, find_release
from mg_llava.evaluation.gallery import write_gallery
from mg_llava.evaluation.identity import hash_checkpoint, hash_config
from mg_llava.evaluation.overview import PAGE_FILE, format_table, make_entry, merge_results, write_page
from mg_llava.evaluation.results import RunResult
from mg_llava.evaluation.runner import Asking, run_benchmark
from mg_llava.inference import Predictor
from mg_llava.work.devices import pick_device
from mg_llava.work.processes import Processes


def load_predictor(
    source: Config | Path,
    checkpoint: str | Path | None,
    processes: Processes,
    device: str = "auto",
    exif: bool = False,
) -> tuple[Predictor, dict[str, Any]]:
    """A model, and its identity; raises as ``Predictor.from_pretrained`` does.

    Args:
        source: A config, or a Hugging Face folder of ours.
        checkpoint: With a config.
        processes: Those that load it; reading a large checkpoint once more is enough.
        device: As of ``Predictor.from_pretrained``.
        exif: Whether to turn pictures as their EXIF orientation says, whatever the model was trained with.
    """
    pictures = {"apply_exif": True} if exif else {}
    if isinstance(source, Config):
        source.merge_from_dict({"picture_processor": pictures} if pictures else {})
    predictor = Predictor.from_pretrained(source, checkpoint, str(pick_device(device)), pictures)
    identity: dict[str, Any] = {}
    if processes.is_main:
        weights = Path(checkpoint) if isinstance(source, Config) and checkpoint is not None else source
        assert isinstance(weights, Path)
        identity = {"checkpoint": weights.name, "checkpoint_hash": hash_checkpoint(weights)}
        if isinstance(source, Config):
            identity |= {"config": Path(str(source.filename)).name, "config_hash": hash_config(source)}
        elif exif:
            identity["apply_exif"] = True
    return predictor, processes.gather(identity)[0]


@dataclass
class Suite:
    """A set of benchmarks and how they are run.

    Attributes:
        predictor: The model.
        identity: Tells the model from others.
        benchmarks: The benchmarks.
        out: Folder of results.
        processes: The processes that share the work.
        settings: Boxes and fusion; with several of them, the first is what the others are compared with.
        box_files: Box file of each benchmark, by name.
        oracle: Box file of the annotations.
        detector: Finds missing boxes; see ``build_box_source``.
        asking: How questions are asked.
        generation: Arguments of ``generate`` in place of the defaults.
        gallery: Pictures with true and found boxes, on a page beside the results of each benchmark about boxes.
    """

    predictor: Predictor
    identity: Mapping[str, Any]
    benchmarks: Sequence[Benchmark]
    out: Path
    processes: Processes
    settings: Sequence[Setting]
    box_files: Mapping[str, Path | None]
    oracle: Path | None
    detector: Any
    asking: Asking
    generation: Mapping[str, Any]
    gallery: int = 0

    def run(self) -> str:
        """Run all, write ``results.json`` and the HTML report.

        Returns:
            The tables for the terminal; empty in other processes than the main one.
        """
        runs: dict[str, list[RunResult]] = {}
        for setting in self.settings:
            out = self.out if len(self.settings) == 1 else self.out / setting.folder
            with applied(setting, self.predictor):
                runs[setting.name] = self._run_benchmarks(setting, out)
        if not self.processes.is_main:
            return ""
        baseline, rows = self.settings[0].name, self._compare(runs)
        ablation = {"baseline": baseline, "differences": [row.to_dict() for row in rows]}
        is_ablation = len(self.settings) > 1
        entries = [make_entry(run) for run in runs[baseline]]
        results = merge_results(self.out, entries, ablation if is_ablation else None)
        write_page(results, self.out / PAGE_FILE)
        table = format_table(results)
        return f"{table}\n\n{format_differences(rows, baseline)}" if is_ablation else table

    def _compare(self, runs: Mapping[str, Sequence[RunResult]]) -> list[Difference]:
        """Differences of all settings to the first; questions about one picture are drawn together."""
        scores = {name: {run.benchmark: run.score for run in some} for name, some in runs.items()}
        headlines = {benchmark.name: benchmark.headline for benchmark in self.benchmarks}
        groups = {b.name: {str(q.id): q.picture_key or str(q.id) for q in b.questions()} for b in self.benchmarks}
        return compare(scores, headlines, groups)

    def _run_benchmarks(self, setting: Setting, out: Path) -> list[RunResult]:
        """Run all benchmarks under a setting; results in the main process only."""
        identity = {**self.identity, "fusion": "on" if setting.fusion else "off"}
        identity |= {"without": setting.without} if setting.without else {}
        settings = {"model_identity": identity, "processes": self.processes, **self.generation}
        style: dict[str, Any] = {"unit": " questions", "file": sys.stderr, "smoothing": 0.05}
        runs = []
        for benchmark in self.benchmarks:
            boxes = self._boxes(benchmark, setting)
            with tqdm(desc=benchmark.name, disable=not self.processes.is_main, **style) as bar:
                settings["progress"] = partial(_show, bar)
                run = run_benchmark(benchmark, self.predictor, out, boxes, self.asking, **settings)
            if run is not None and self.gallery:
                write_gallery(benchmark, run, self.gallery, self.predictor.front_end.picture_processor.mode)
            runs += [run] if run is not None else []
        return runs

    def _boxes(self, benchmark: Benchmark, setting: Setting) -> BoxSource:
        processor = self.predictor.front_end.picture_processor
        return build_box_source(
            setting.boxes,
            self.box_files.get(benchmark.name),
            self.detector,
            oracle=self.oracle,
            to_frame=partial(to_rgb, mode=processor.mode, apply_exif=processor.apply_exif),
        )


def build_benchmarks(
    names: Sequence[str], root: str | Path, prompt: str | None = None, frames: int | None = None
) -> list[Benchmark]:
    """Benchmarks of the catalog, with their files under a root, or given by ``NAME=FILE`` (``:`` between several).

    Raises:
        FileNotFoundError: Files are missing; the message names them all and where to get them.
        ValueError: A name is unknown, comes twice, or a file is malformed; or ``frames`` are given, and none is about
            videos.
    """
    configs, missing = {}, []
    for text in names:
        name, _, files = text.partition("=")
        config = benchmark_config(name, root)
        if files:
            config["data"] = files.split(":")
        gone = [path for path in config["data"] if not Path(path).exists()]
        if gone:
            missing.append(f"{name}: {', '.join(gone)} not found; get {find_release(name).get}")
        if name in configs:
            raise ValueError(f"benchmark {name} is named twice")
        configs[name] = config | ({"prompt": prompt} if prompt else {})
    if missing:
        raise FileNotFoundError("\n  ".join(["benchmarks without data (--list shows all):", *missing]))
    built = [BENCHMARKS.build(config) for config in configs.values()]
    if frames is not None:
        videos = [benchmark for benchmark in built if benchmark.has_open_frames]
        if not videos:
            raise ValueError(f"frames={frames}, but none of {', '.join(configs)} shows as many frames as wanted")
        for benchmark in videos:
            benchmark.frames, benchmark.has_open_frames = frames, False
    return built


def find_box_files(names: Sequence[str], root: str | Path, given: Path | None) -> dict[str, Path | None]:
    """The box file of each benchmark: the given file, or the one of its name in the given or the default folder.

    Raises:
        FileNotFoundError: The given file or folder does not exist.
    """
    if given is not None and not given.exists():
        raise FileNotFoundError(f"box file {given} does not exist")
    if given is None or given.is_file():
        return {name: given or default_boxes(name, root) for name in names}
    return {name: default_boxes(name, given, ("boxes", "")) for name in names}


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
