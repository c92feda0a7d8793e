"""``xtuner test CONFIG --checkpoint ...``: benchmarks as data set, loop and metric of mmengine.

The loop answers with the ``Predictor`` that chat and ``tools/evaluate.py`` use, so that replies are theirs. They are
gathered by question: neither their order nor the number of processes matters.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import TestLoop
from PIL import Image
from torch.utils.data import Dataset

from mg_llava.data.pictures.files import PictureError, to_rgb
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.box_source import build_box_source
from mg_llava.evaluation.catalog import DEFAULT_ROOT, benchmark_config, default_boxes
from mg_llava.evaluation.identity import run_identity
from mg_llava.evaluation.overview import flat_metrics
from mg_llava.evaluation.replies import Line, Replies, line_of
from mg_llava.evaluation.results import score
from mg_llava.evaluation.runner import BadSamples
from mg_llava.inference import Predictor, Request
from mg_llava.registry import DATASETS, METRICS, TRANSFORMS


class _Item(NamedTuple):
    """A question, its place in its benchmark, and the number of this."""

    benchmark: int
    place: int
    question: Question


@DATASETS.register_module()
class BenchmarkDataset(Dataset):
    """Questions of one or several benchmarks, with decoded pictures and their boxes.

    Args:
        benchmarks: Benchmarks, their configs, or names of the catalog. A config may have ``box_path`` and
            ``oracle_path``, its box files; for a name it is looked for as ``tools/evaluate.py`` does.
        tokenizer: The LLM's tokenizer, its folder, or a config of one.
        template: Name of the prompt template, or a template.
        picture_processor: The ``PictureProcessor`` of the training, or its config.
        data_root: Folder of the data of named benchmarks.
        boxes: Where boxes come from; see ``box_source.parse_box_spec``.
        detector: Finds missing boxes; see ``box_source.build_box_source``.
        system: System text before the question; none, as in training, by default.
        limit: Ask the first questions of each benchmark only, for a look; None for all.
        seed: For boxes that are drawn.

    Raises:
        FileNotFoundError: A data file does not exist.
        ValueError: A data file is malformed, a setting is wrong, or two benchmarks have one name.
    """

    def __init__(
        self,
        benchmarks: Sequence[Any],
        tokenizer: Any,
        template: Any,
        picture_processor: Any,
        data_root: str = DEFAULT_ROOT,
        boxes: str = "detected",
        detector: Any = None,
        system: str = "",
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        is_config = isinstance(picture_processor, Mapping)
        processor: PictureProcessor = TRANSFORMS.build(picture_processor) if is_config else picture_processor
        self.parts = {"tokenizer": tokenizer, "template": template, "picture_processor": processor, "system": system}
        """Arguments of the ``Predictor``."""
        self.benchmarks: list[Benchmark] = []
        self.sources = []
        self.items: list[_Item] = []
        self.limit = limit
        to_frame = partial(to_rgb, mode=processor.mode, apply_exif=processor.apply_exif)
        for number, item in enumerate(benchmarks):
            benchmark, store, oracle = _build_benchmark(item, data_root)
            source = build_box_source(boxes, store, detector, oracle=oracle, seed=seed, to_frame=to_frame)
            self.benchmarks.append(benchmark)
            self.sources.append(source)
            asked = list(benchmark.questions())[:limit]
            self.items += [_Item(number, place, question) for place, question in enumerate(asked)]
        names = Counter(benchmark.name for benchmark in self.benchmarks)
        if len(names) < len(self.benchmarks):
            twice = names.most_common(1)[0][0]
            raise ValueError(f"two benchmarks have the name {twice!r}; give one of them another with name=...")

    @property
    def metainfo(self) -> dict[str, Any]:
        """The benchmarks, and how many questions of each are asked."""
        return {"benchmarks": self.benchmarks, "limit": self.limit}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A question: ``id`` (its place), ``request`` and ``source``, what its boxes count as.

        In place of the request is the error where the picture cannot be read.
        """
        number, question = self.items[index].benchmark, self.items[index].question
        owner = f"{self.benchmarks[number].name}, question {question.id!r}"
        if question.picture is None:
            return {"id": index, "request": Request(question.text, id=owner), "source": None}
        try:
            opened = question.picture()
        except PictureError as error:
            return {"id": index, "request": error, "source": None}
        pictures = [opened] if isinstance(opened, Image.Image) else opened
        found = self.sources[number].look_up(question, pictures)
        boxes = found.boxes if len(found.boxes) > 1 else found.boxes[0]
        return {"id": index, "request": Request(question.text, opened, boxes, owner), "source": found.counts}


def collate_questions(instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch of ``BenchmarkDataset``: a list; the predictor makes the model's input of it."""
    return list(instances)


class BenchmarkLoop(TestLoop):
    """A test loop that lets the model answer a ``BenchmarkDataset``, and gives the metric what it is to keep.

    Args:
        runner: The runner.
        dataloader: Dataloader of a ``BenchmarkDataset``, or its config.
        evaluator: With a ``BenchmarkMetric``, or its config.
        bad_samples: As of ``runner.Asking``.
        **generation: Arguments of the LLM's ``generate``; greedy, and each benchmark's own ``max_new_tokens``, by
            default.
    """

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Any, bad_samples: BadSamples = "report", **generation: Any
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.dataset: BenchmarkDataset = self.dataloader.dataset
        self.bad_samples = bad_samples
        self.predictor = Predictor(getattr(runner.model, "module", runner.model), **self.dataset.parts)
        self.settings = [{"max_new_tokens": one.max_new_tokens, **generation} for one in self.dataset.benchmarks]
        self.evaluator.dataset_meta = {
            **self.dataset.metainfo,
            "out_dir": Path(runner.work_dir) / "test",
            "runs": [self._describe(number) for number in range(len(self.dataset.benchmarks))],
        }

    def _describe(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Identity of the run of a benchmark, and what is told of it besides."""
        benchmark, described = self.dataset.benchmarks[number], self.dataset.sources[number].describe()
        asked = [item.question for item in self.dataset.items if item.benchmark == number]
        identity = run_identity(benchmark, asked, self.predictor, described, self.settings[number], None)
        return identity, {"boxes": described}

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: list[dict[str, Any]]) -> None:  # type: ignore[override]
        """Answer one batch of questions."""
        self.runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
        groups: dict[int, list[dict[str, Any]]] = {}
        for sample in data_batch:
            groups.setdefault(self.dataset.items[sample["id"]].benchmark, []).append(sample)
        outputs = [(number, line) for number, group in groups.items() for line in self._answer(number, group)]
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook("after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)

    def _answer(self, number: int, samples: list[dict[str, Any]]) -> list[Line]:
        """Lines of questions of one benchmark."""
        answers: dict[int, Any] = {s["id"]: s["request"] for s in samples if isinstance(s["request"], Exception)}
        asked = [sample for sample in samples if sample["id"] not in answers]
        stream = self.predictor.stream([s["request"] for s in asked], max(1, len(asked)), **self.settings[number])
        answers |= {asked[place]["id"]: answer for batch in stream for place, answer in batch}
        errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
        if errors and self.bad_samples == "raise":
            raise errors[0]
        items = [self.dataset.items[sample["id"]] for sample in samples]
        return [
            line_of(item.place, item.question, answers[sample["id"]], sample["source"])
            for item, sample in zip(items, samples, strict=True)
        ]


class DistributedModel(MMDistributedDataParallel):
    """A model in several processes that also loads checkpoints of the bare model.

    ``xtuner test`` loads into the wrapped model and does not look whether keys were found: with mmengine's wrapper,
    whose keys begin with ``module.``, it would test untrained weights.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of ``torch.nn.Module``; keys with and without the wrapper's prefix are known."""
        prefix = "module."
        bare = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        return self.module.load_state_dict(bare, *args, **kwargs)


@METRICS.register_module()
class BenchmarkMetric(BaseMetric):
    """Scores the replies of a ``BenchmarkDataset`` by every rule that applies, and keeps them.

    Writes the files of ``tools/evaluate.py`` to ``<out_dir>/<benchmark>``.

    Args:
        out_dir: Folder for files; ``test`` in the work directory by default.
        options: Settings of scorers by benchmark name, such as ``{"refcoco_val": dict(box_format="padded")}``.
        collect_device: As in mmengine.
        collect_dir: As in mmengine.
    """

    default_prefix = "test"

    def __init__(
        self,
        out_dir: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        collect_device: str = "cpu",
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, collect_dir=collect_dir)
        self.out_dir = out_dir
        self.options = dict(options or {})

    def process(self, data_batch: Any, data_samples: Sequence[tuple[int, Line]]) -> None:  # type: ignore[override]
        """Keep the lines of a batch, each with the number of its benchmark."""
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Write and score all replies, in the main process.

        Returns:
            ``benchmark/rule/metric`` for every metric that is a number.
        """
        meta = self.dataset_meta or {}
        metrics: dict[str, float] = {}
        for number, benchmark in enumerate(meta["benchmarks"]):
            replies = Replies(Path(self.out_dir or meta["out_dir"]) / benchmark.name)
            identity, about = meta["runs"][number]
            replies.prepare(identity, fresh=True, about=about)
            replies.append(line for of, line in results if of == number)
            replies.close()
            result = score(benchmark, replies, meta["limit"], self.options.get(benchmark.name))
            for warning in result.score["warnings"]:
                print_log(f"{benchmark.name}: {warning}", logger="current", level=logging.WARNING)
            for rule, scored in result.score["rules"].items():
                metrics |= {f"{benchmark.name}/{rule}/{name}": v for name, v in flat_metrics(scored["metrics"])}
        return metrics


def _build_benchmark(item: Any, root: str) -> tuple[Benchmark, Any, Any]:
    """A benchmark and its two box files."""
    if isinstance(item, Benchmark):
        return item, None, None
    if isinstance(item, str):
        item = {**benchmark_config(item, root), "box_path": default_boxes(item, root)}
    settings = dict(item)
    store, oracle = settings.pop("box_path", None), settings.pop("oracle_path", None)
    return BENCHMARKS.build(settings), store, oracle
