"""``xtuner test CONFIG --checkpoint ...``: benchmarks as data set, loop and metric of mmengine.

The loop answers with the ``Predictor`` that chat and ``tools/evaluate.py`` use, so that replies are theirs. They are
gathered by question: neither their order nor the number of processes matters.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import TestLoop
from torch.utils.data import Dataset

from mg_llava.data.pictures.files import PictureError, to_rgb
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.boxes import build_box_source
from mg_llava.evaluation.catalog import DEFAULT_ROOT, benchmark_config, default_boxes
from mg_llava.evaluation.report import flat_metrics
from mg_llava.inference import Predictor, Request
from mg_llava.registry import DATASETS, METRICS, TRANSFORMS

_FAILED = "failed"


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
        boxes: Where boxes come from; see ``boxes.parse_box_spec``.
        detector: Finds missing boxes; see ``boxes.build_box_source``.
        system: System text before the question; none, as in training, by default.
        limit: Ask the first questions of each benchmark only, for a look: the others count as missing. None for all.
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
        self.parts = {
            "tokenizer": tokenizer,
            "template": template,
            "picture_processor": processor,
            "system": system,
        }
        """Arguments of the ``Predictor``."""
        self.benchmarks: list[Benchmark] = []
        self.sources = []
        self.items: list[tuple[int, Question]] = []
        """Number of the benchmark, and the question."""
        to_frame = partial(to_rgb, mode=processor.mode, apply_exif=processor.apply_exif)
        for number, item in enumerate(benchmarks):
            benchmark, store, oracle = _build_benchmark(item, data_root)
            source = build_box_source(boxes, store, detector, oracle=oracle, seed=seed, to_frame=to_frame)
            self.benchmarks.append(benchmark)
            self.sources.append(source)
            self.items += [(number, question) for question in list(benchmark.questions())[:limit]]
        names = Counter(benchmark.name for benchmark in self.benchmarks)
        if len(names) < len(self.benchmarks):
            twice = names.most_common(1)[0][0]
            raise ValueError(f"two benchmarks have the name {twice!r}; give one of them another with name=...")

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the metric needs: all questions with their benchmarks, and where boxes come from."""
        return {"benchmarks": self.benchmarks, "items": self.items, "sources": self.sources}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A question: ``id`` (its place), ``request``, and ``counts``, what its boxes count as.

        ``request`` is None where the picture cannot be read; such a question counts as not answered.
        """
        number, question = self.items[index]
        owner = f"{self.benchmarks[number].name}, question {question.id!r}"
        if question.picture is None:
            return {"id": index, "request": Request(question.text, id=owner), "counts": {}}
        try:
            opened = question.picture()
            boxes, counts = self.sources[number].look_up(question, opened)
        except PictureError as error:
            print_log(f"{owner}: {error}; counted as not answered", logger="current", level=logging.WARNING)
            return {"id": index, "request": None, "counts": {_FAILED: 1}}
        # [] and not None: no boxes, rather than those of a proposer
        if isinstance(boxes, list):
            boxes = [[] if record is None else record for record in boxes]  # type: ignore[misc]
        request = Request(question.text, opened, [] if boxes is None else boxes, owner)
        return {"id": index, "request": request, "counts": counts}


def collate_questions(instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch of ``BenchmarkDataset``: a list; the predictor makes the model's input of it."""
    return list(instances)


class BenchmarkLoop(TestLoop):
    """A test loop that lets the model answer a ``BenchmarkDataset``, and gives the metric replies as text.

    Args:
        runner: The runner.
        dataloader: Dataloader of a ``BenchmarkDataset``, or its config.
        evaluator: With a ``BenchmarkMetric``, or its config.
        **generation: Arguments of the LLM's ``generate``; greedy, and each benchmark's own ``max_new_tokens``, by
            default.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **generation: Any) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.dataset: BenchmarkDataset = self.dataloader.dataset
        self.evaluator.dataset_meta = {**self.dataset.metainfo, "out_dir": Path(runner.work_dir) / "test"}
        self.generation = generation
        self.predictor = Predictor(getattr(runner.model, "module", runner.model), **self.dataset.parts)

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: list[dict[str, Any]]) -> None:  # type: ignore[override]
        """Answer one batch of questions."""
        self.runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
        groups: dict[int, list[dict[str, Any]]] = {}
        for sample in data_batch:
            number, _ = self.dataset.items[sample["id"]]
            groups.setdefault(number, []).append(sample)
        outputs = [output for number, group in groups.items() for output in self._answer(number, group)]
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook("after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)

    def _answer(self, number: int, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``id``, ``counts`` and ``text`` of questions of one benchmark; no text where there is no answer."""
        settings = {"max_new_tokens": self.dataset.benchmarks[number].max_new_tokens, **self.generation}
        asked = [sample for sample in samples if sample["request"] is not None]
        texts: dict[int, str] = {}
        for batch in self.predictor.stream([s["request"] for s in asked], max(1, len(asked)), **settings):
            for place, answer in batch:
                if isinstance(answer, Exception):
                    message = f"{asked[place]['request'].id}: {answer}; counted as not answered"
                    print_log(message, logger="current", level=logging.WARNING)
                else:
                    texts[asked[place]["id"]] = answer.text
        return [{"id": s["id"], "counts": s["counts"], "text": texts.get(s["id"])} for s in samples]


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

    Writes ``<out_dir>/<benchmark>/predictions.jsonl``, which ``tools/score.py`` reads, and ``results.json``.

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

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the replies of a batch: ``id``, ``text`` (None for no answer) and ``counts`` of each."""
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Score all replies, in the main process.

        Returns:
            ``benchmark/rule/metric`` for every metric that is a number.
        """
        meta = self.dataset_meta or {}
        replies = {entry["id"]: entry for entry in results}
        metrics: dict[str, float] = {}
        for number, benchmark in enumerate(meta["benchmarks"]):
            asked = [(i, question) for i, (of, question) in enumerate(meta["items"]) if of == number]
            texts = [(question, replies[i]["text"]) for i, question in asked if i in replies]
            lines = [benchmark.prediction(question, text) for question, text in texts if text is not None]
            result = benchmark.score(lines, **self.options.get(benchmark.name, {}))
            counts = sum((Counter(replies[i]["counts"]) for i, _ in asked if i in replies), Counter())
            boxes = meta["sources"][number].describe() | {"counts": dict(counts)}
            self._write(Path(self.out_dir or meta["out_dir"]) / benchmark.name, lines, {**result, "boxes": boxes})
            for rule, scored in result["rules"].items():
                metrics |= {f"{benchmark.name}/{rule}/{name}": v for name, v in flat_metrics(scored["metrics"])}
        return metrics

    def _write(self, folder: Path, lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        for warning in result.get("warnings", ()):
            print_log(f"{folder.name}: {warning}", logger="current", level=logging.WARNING)


def _build_benchmark(item: Any, root: str) -> tuple[Benchmark, Any, Any]:
    """A benchmark and its two box files."""
    if isinstance(item, Benchmark):
        return item, None, None
    if isinstance(item, str):
        item = {**benchmark_config(item, root), "box_path": default_boxes(item, root)}
    settings = dict(item)
    store, oracle = settings.pop("box_path", None), settings.pop("oracle_path", None)
    return BENCHMARKS.build(settings), store, oracle
