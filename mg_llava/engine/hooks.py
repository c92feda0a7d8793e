"""What a run tells about itself while it trains: branches and gradients, speed, skipped data."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mg_llava.registry import HOOKS


def unwrap_model(model: Any) -> nn.Module:
    """Return the model itself, without the wrapper of DistributedDataParallel or DeepSpeed."""
    return model.module if is_model_wrapper(model) else model


def is_checkpoint_due(runner: Any) -> bool:
    """Tell whether a checkpoint is written after this step."""
    return any(
        (hook.save_last and hook.is_last_train_iter(runner))
        or hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
        for hook in runner.hooks
        if isinstance(hook, CheckpointHook) and not hook.by_epoch
    )


def nested_datasets(dataset: Any) -> Iterator[Any]:
    """A data set, and all that it is made of."""
    yield dataset
    for part in getattr(dataset, "sources", None) or getattr(dataset, "datasets", None) or ():
        yield from nested_datasets(part)


@HOOKS.register_module()
class GateMonitorHook(Hook):
    """Logs the model's monitor and the gradient norm of each trained part, and warns when one stays dead.

    A fusion whose projections start at zero passes nothing of the high-resolution view at first; this shows whether it
    comes to life. Logged as ``gate``, ``high_norm``, ``grad_projector`` and so on, as means over processes. A gradient
    norm is that of one micro-batch's gradient, before averaging and clipping, taken with tensor hooks that exist in
    the watched iterations alone; so it is the same with and without DeepSpeed. A batch without pictures says nothing
    about the parts that see.

    Args:
        interval: Iterations between two measurements; best that of the ``LoggerHook``.
        patience: Measurements in a row at or below ``threshold`` before the warning.
        threshold: Absolute value up to which a gate, norm or gradient norm counts as dead.

    Raises:
        ValueError: If ``interval`` or ``patience`` is not positive.
    """

    priority = "NORMAL"  # before LoggerHook (BELOW_NORMAL), which writes the values

    def __init__(self, interval: int = 10, patience: int = 5, threshold: float = 1e-9) -> None:
        if interval < 1 or patience < 1:
            raise ValueError(f"interval and patience must be at least 1, found {interval} and {patience}.")
        self.interval = interval
        self.patience = patience
        self.threshold = threshold
        self._handles: list[Any] = []
        self._squares: dict[str, Tensor] = {}
        self._dead: dict[str, int] = defaultdict(int)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start to watch gradients, in a watched iteration."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        model = unwrap_model(runner.model)
        model.monitor.clear()  # what this iteration does not refresh is not reported
        for part, module in _trained_parts(model):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(self._adder(part.key)))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Gather, log and judge, in a watched iteration."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        model = unwrap_model(runner.model)
        seen = data_batch is None or has_pictures(data_batch["data"])
        for name, value in self._measure(model, seen, _loss_scale(runner)).items():
            runner.message_hub.update_scalar(f"train/{name}", value)
            self._judge(name, value, runner.iter + 1)
        self._squares.clear()

    def _adder(self, part: str) -> Any:
        def add(gradient: Tensor) -> None:
            square = gradient.detach().float().square().sum()
            self._squares[part] = self._squares[part] + square if part in self._squares else square

        return add

    def _measure(self, model: Any, seen: bool, loss_scale: float) -> dict[str, float]:
        """Mean over processes of every value that at least one of them has."""
        found: dict[str, Any] = dict(model.monitor)
        for part, _ in _trained_parts(model):
            if seen or part.role == "llm":
                found[f"grad_{part.key}"] = _root(self._squares.get(part.key)) / loss_scale
        # a process whose batch has no pictures must reduce what the others have
        names = sorted({name for names in all_gather_object(sorted(found)) for name in names})
        device = next(model.parameters()).device
        table = torch.zeros(2, len(names), device=device)  # sums, counts
        for column, name in enumerate(names):
            if (value := found.get(name)) is not None:
                table[0, column] = torch.as_tensor(value, device=device)
                table[1, column] = 1
        all_reduce(table)
        sums, counts = table.tolist()
        return {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n}

    def _judge(self, name: str, value: float, iteration: int) -> None:
        self._dead[name] = self._dead[name] + 1 if abs(value) <= self.threshold else 0
        if self._dead[name] == self.patience:
            print_log(
                f"{name} has stayed at {value:.1e} for {self.patience * self.interval} iterations (now {iteration}): "
                "this branch is dead. Check that its modules are trained, that its learning rate is not 0 and that "
                "the data has pictures and boxes.",
                logger="current",
                level=logging.WARNING,
            )


def _trained_parts(model: Any) -> Iterator[tuple[Any, nn.Module]]:
    """The parts of a system of which something is trained."""
    for part, module in model.named_parts():
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield part, module


def has_pictures(data: Mapping[str, Any]) -> bool:
    """Whether a batch has something to see."""
    return any(data.get(name) is not None and len(data[name]) for name in ("canvas", "features"))


def _root(square: Tensor | None) -> Any:
    return 0.0 if square is None else square.sqrt()


def _loss_scale(runner: Any) -> float:
    """Factor by which fp16 training multiplies the loss; 1 otherwise."""
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    if scaler is not None:
        return float(scaler.get_scale())
    return float(getattr(getattr(runner.model, "optimizer", None), "loss_scale", 1.0))


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs samples/s and tokens/s of all processes together, loading of data included, as means over an interval.

    Tokens are those the LLM sees: text without padding, plus the tokens of pictures and boxes. (XTuner's hook of this
    name takes the padded length of the first tensor it finds and knows no pictures.)

    Args:
        interval: Iterations between two values; best that of the ``LoggerHook``.
    """

    priority = "NORMAL"  # before LoggerHook (BELOW_NORMAL), which writes the values

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self._start: float | None = None
        self._counts = [0, 0]  # samples, tokens

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a batch; report at the end of an interval. The first iteration only starts the clock."""
        if self._start is None:
            self._start = time.perf_counter()
            return
        self._counts[0] += len(data_batch["data"]["input_ids"])
        self._counts[1] += count_batch_tokens(data_batch["data"], unwrap_model(runner.model))
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner)

    def _report(self, runner: Any) -> None:
        device = next(unwrap_model(runner.model).parameters()).device
        counts = torch.tensor(self._counts, dtype=torch.float64, device=device)
        all_reduce(counts)
        samples, tokens = counts.tolist()  # waits for the device, so that the clock is read after the work
        now = time.perf_counter()
        assert self._start is not None
        elapsed = max(now - self._start, 1e-9)
        runner.message_hub.update_scalar("train/samples_per_s", samples / elapsed)
        runner.message_hub.update_scalar("train/tokens_per_s", tokens / elapsed)
        self._start, self._counts = now, [0, 0]


def count_batch_tokens(data: Mapping[str, Any], system: Any) -> int:
    """Tokens the LLM sees of a batch as ``collate`` makes it: a placeholder gives way to what stands for it.

    Args:
        data: A :class:`mg_llava.batch.Batch` on the CPU.
        system: Asked for its ``token_count`` where the batch was not counted before.
    """
    if data.get("layout") is not None:
        return sum(data["layout"].lengths)
    mask = data["attention_mask"].numpy().astype(bool)
    if not has_pictures(data):
        return int(mask.sum())
    images, features = data.get("canvas"), data.get("features")
    canvases = (0 if images is None else len(images)) + (0 if features is None else len(features["low"]))
    boxes = sum(len(b) for b in data.get("boxes") or ())
    placeholders = int((data["input_ids"].numpy()[mask] < 0).sum())
    count = system.token_count
    return int(mask.sum()) + (count.per_media - 1) * placeholders + count.per_canvas * canvases + count.per_box * boxes


@HOOKS.register_module()
class DataReportHook(Hook):
    """Logs what the data set skipped, for each source and all processes together: as it grows, and after training.

    Asks the data set for its ``report()``, text or what ``LLaVADataset`` and ``MixtureDataset`` say, or else for its
    number of ``bad_samples``.

    Args:
        interval: Iterations between two looks during training; each is a small exchange between all processes.

    Raises:
        ValueError: If ``interval`` is not positive.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 500) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, found {interval}")
        self.interval = interval
        self._logged: list[str] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Log what was skipped since the last look."""
        if self.every_n_train_iters(runner, self.interval):
            lines = _report_lines(runner.train_dataloader.dataset)
            self._log([line for line in lines if line not in self._logged])
            self._logged = lines

    def after_train(self, runner: Any) -> None:
        """Log all that was skipped."""
        self._log(_report_lines(runner.train_dataloader.dataset))

    def _log(self, lines: Sequence[str]) -> None:
        for line in lines:
            print_log(line, logger="current")


def _report_lines(dataset: Any) -> list[str]:
    """Lines about what all processes skipped of a data set; none where there is nothing to say."""
    lines: list[str] = []
    sources: dict[str, Counter[str]] = {}
    records: dict[str, int] = {}
    anew: Counter[str] = Counter()
    strays: Counter[str] = Counter()
    ids: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for rank, reports in enumerate(all_gather_object(_reports_of(dataset))):
        where = f" (process {rank})" if get_world_size() > 1 else ""
        for report in reports:
            if isinstance(report, Mapping):
                name = report["name"]
                sources.setdefault(name, Counter()).update(report["skipped"])
                records[name] = report["records"]
                anew[name] += report.get("encoded_anew", 0)
                strays[name] += report.get("stray_boxes", 0)
                for kind in ("skipped_ids", "stray_ids"):
                    ids[name, kind] += report.get(kind, [])
            elif report:
                lines.append(f"Data{where}: {report}")
    for name, skipped in sources.items():
        if skipped.total():
            kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.items() if count)
            some = _name_some(ids[name, "skipped_ids"])
            lines.append(f"Data: {skipped.total()} of {records[name]} records of {name} were skipped ({kinds}){some}")
    lines += [
        f"Data: {count} samples of {name} were not in the feature cache" for name, count in anew.items() if count
    ]
    lines += [
        f"Data: {count} boxes of {name} lie outside of their pictures{_name_some(ids[name, 'stray_ids'])}"
        for name, count in strays.items()
        if count
    ]
    return lines


def _name_some(ids: Sequence[str]) -> str:
    """The end of a line that names a few records: warnings of processes other than the first are not logged."""
    return f", such as id {', '.join(map(repr, dict.fromkeys(ids)))}" if ids else ""


def _reports_of(dataset: Any) -> list[Any]:
    """Reports about the parts of a data set: text, or what a source says of itself."""
    if hasattr(dataset, "report"):
        report = dataset.report()
        return list(report.get("sources", [report])) if isinstance(report, Mapping) else [str(report or "")]
    if hasattr(dataset, "datasets"):
        return [report for part in dataset.datasets for report in _reports_of(part)]
    bad = getattr(dataset, "bad_samples", 0)
    return [f"{bad} samples of {getattr(dataset, 'data_path', 'the data set')} were skipped"] if bad else []
