"""``xtuner test CONFIG --checkpoint ...``: benchmarks as data set, loop and metric of mmengine.

The loop answers and scores as ``tools/evaluate.py`` does, so that replies and files are the same.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import TestLoop
from torch.utils.data import Dataset

from mg_llava.data.config import trained_length
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.box_source import build_box_source
from mg_llava.evaluation.catalog import DEFAULT_ROOT, benchmark_config, default_boxes
from mg_llava.evaluation.overview import flat_metrics
from mg_llava.evaluation.replies import Replies
from mg_llava.evaluation.results import score
from mg_llava.evaluation.runner import Asking, BadSamples, answer
from mg_llava.inference import Predictor
from mg_llava.models.positions import take_positions
from mg_llava.registry import DATASETS, METRICS, TRANSFORMS
from mg_llava.work.processes import Processes


@DATASETS.register_module()
class BenchmarkDataset(Dataset):
    """Questions of one or several benchmarks, and the source of their boxes.

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
        prompt_parts: What changes the text by the boxes, as in training.

    Raises:
        FileNotFoundError: A data file does not exist.
        ValueError: A data file is malformed, a setting is wrong, or two benchmarks have one name.
    """

    metainfo: Mapping[str, Any] = {}
    """Nothing; mmengine wants it."""

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
        prompt_parts: Sequence[Any] = (),
    ) -> None:
        is_config = isinstance(picture_processor, Mapping)
        processor: PictureProcessor = TRANSFORMS.build(picture_processor) if is_config else picture_processor
        self.parts = {"tokenizer": tokenizer, "template": template, "picture_processor": processor, "system": system}
        """Arguments of the ``Predictor``."""
        self.parts["parts"] = prompt_parts
        self.benchmarks: list[Benchmark] = []
        self.sources = []
        self.limit = limit
        to_frame = partial(to_rgb, mode=processor.mode, apply_exif=processor.apply_exif)
        for item in benchmarks:
            benchmark, store, oracle = _build_benchmark(item, data_root)
            source = build_box_source(boxes, store, detector, oracle=oracle, seed=seed, to_frame=to_frame)
            self.benchmarks.append(benchmark)
            self.sources.append(source)
        self._questions = [one for benchmark in self.benchmarks for one in list(benchmark.questions())[:limit]]
        names = Counter(benchmark.name for benchmark in self.benchmarks)
        if len(names) < len(self.benchmarks):
            twice = names.most_common(1)[0][0]
            raise ValueError(f"two benchmarks have the name {twice!r}; give one of them another with name=...")

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Question:
        return self._questions[index]


class BenchmarkLoop(TestLoop):
    """A test loop that lets the model answer a ``BenchmarkDataset`` and scores the replies.

    Args:
        runner: The runner.
        dataloader: Dataloader of a ``BenchmarkDataset``, or its config; its workers are threads that decode pictures.
        evaluator: With a ``BenchmarkMetric``, or its config.
        bad_samples: As of ``runner.Asking``.
        **generation: Arguments of the LLM's ``generate``; greedy, and each benchmark's own ``max_new_tokens``, by
            default.
    """

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Any, bad_samples: BadSamples = "report", **generation: Any
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        dataset, workers = self.dataloader.dataset, max(1, self.dataloader.num_workers)
        self.dataset: BenchmarkDataset = dataset
        self.asking = Asking(self.dataloader.batch_size, dataset.limit, bad_samples, fresh=True, workers=workers)
        self.predictor = Predictor(getattr(runner.model, "module", runner.model), **dataset.parts)
        take_positions(self.predictor.model.llm.config, trained_length(runner.cfg))
        self.generation = generation
        self._batches = 0

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        """Answer and score all benchmarks.

        Returns:
            ``test/benchmark/rule/metric`` for every metric that is a number.
        """
        for hook in ("before_test", "before_test_epoch"):
            self.runner.call_hook(hook)
        self.runner.model.eval()
        processes = Processes()
        metrics: dict[str, float] = {}
        (metric,) = self.evaluator.metrics
        out = Path(metric.out_dir or Path(self.runner.work_dir) / "test")
        for benchmark, source in zip(self.dataset.benchmarks, self.dataset.sources, strict=True):
            settings = {"processes": processes, "progress": self._tell, **self.generation}
            replies = answer(benchmark, self.predictor, out, source, self.asking, **settings)
            metrics |= processes.on_main(partial(metric.score, benchmark, replies, self.asking.limit))
        self.runner.call_hook("after_test_epoch", metrics=metrics)
        self.runner.call_hook("after_test")
        return metrics

    def _tell(self, answered: int, total: int) -> None:
        """Let the hooks log a batch that was answered."""
        self.runner.call_hook("before_test_iter", batch_idx=self._batches, data_batch=None)
        self.runner.call_hook("after_test_iter", batch_idx=self._batches, data_batch=None, outputs=None)
        self._batches += 1


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
class BenchmarkMetric:
    """Scores the replies to a benchmark by every rule that applies; files are those of ``tools/evaluate.py``.

    Args:
        out_dir: Folder for files, a folder in it for each benchmark; ``test`` in the work directory by default.
        options: Settings of scorers by benchmark name, such as ``{"refcoco_val": dict(box_format="padded")}``.
    """

    def __init__(self, out_dir: str | None = None, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.out_dir = out_dir
        self.options = dict(options or {})

    def score(self, benchmark: Benchmark, replies: Replies, limit: int | None = None) -> dict[str, float]:
        """Score replies and log warnings; ``test/benchmark/rule/metric`` for every metric that is a number."""
        name = benchmark.name
        result = score(benchmark, replies, limit, self.options.get(name))
        for warning in result.score["warnings"]:
            print_log(f"{name}: {warning}", logger="current", level=logging.WARNING)
        rules = {rule: flat_metrics(scored["metrics"]) for rule, scored in result.score["rules"].items()}
        return {f"test/{name}/{rule}/{key}": value for rule, figures in rules.items() for key, value in figures}


def _build_benchmark(item: Any, root: str) -> tuple[Benchmark, Any, Any]:
    """A benchmark and its two box files."""
    if isinstance(item, Benchmark):
        return item, None, None
    if isinstance(item, str):
        item = {**benchmark_config(item, root), "box_path": default_boxes(item, root)}
    settings = dict(item)
    store, oracle = settings.pop("box_path", None), settings.pop("oracle_path", None)
    return BENCHMARKS.build(settings), store, oracle
