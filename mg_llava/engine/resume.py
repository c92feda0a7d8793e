"""Exact resume: a killed run that goes on from its checkpoint gives the losses of a run that was never interrupted.

mmengine restores weights, optimizer, schedulers and the iteration, but not the random states, and finds its place in
the data by loading everything before it once more.
"""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch.utils.data import BatchSampler, DataLoader
from xtuner.engine.runner import TrainLoop as XTunerTrainLoop

from mg_llava.engine.agreement import (
    check_vocabulary,
    fit_deepspeed,
    fit_intervals,
    fit_sampler,
    fit_schedule,
    send_contiguous_weights,
    warn,
    warn_about_rounding,
)
from mg_llava.engine.facts import FACTS_KEY, ResumeError, check_resume, describe_run
from mg_llava.engine.hooks import is_checkpoint_due, nested_datasets, unwrap_model
from mg_llava.engine.losses import NonFiniteError, nonfinite_parameters
from mg_llava.engine.weighting import LossWeighting, WeightedBatches, check_weighting
from mg_llava.registry import HOOKS, LOOPS
from mg_llava.work.lock import folder_lock

STATES_KEY = "random_states"


def get_random_state() -> dict[str, Any]:
    """Return the states of all global random generators of this process, in plain Python and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`get_random_state` returned."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Keeps the random states of all processes in the checkpoint, for :class:`TrainLoop` to put back.

    They travel in the message hub, which is stored by Runner and by DeepSpeed's FlexibleRunner alike.
    """

    priority = "LOW"  # before CheckpointHook (VERY_LOW)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the states when a checkpoint is due in this iteration."""
        if is_checkpoint_due(runner):
            runner.message_hub.update_info(STATES_KEY, all_gather_object(get_random_state()))


@LOOPS.register_module()
class TrainLoop(XTunerTrainLoop):
    """XTuner's loop, which goes on exactly where a checkpoint was written, without loading the data before it.

    Building it draws no random numbers, so that the initial weights of a seed are the same with and without DeepSpeed
    (whose runner builds the model after the loop, the other one before).

    Exact are samplers that yield the same order for the same seed and epoch, and datasets that draw no random numbers
    in worker processes.

    Args:
        runner: mmengine's runner.
        dataloader: The loader, or its config.
        loss_weighting: What counts the same in a step of several micro-batches or processes: ``"tokens"``, each
            labeled token, so that the gradient is that of one large batch; or ``"micro_batches"``, each micro-batch
            of each process, as in the reference. In both the logged loss is the mean over the labeled tokens of a
            micro-batch of the first process.
        **kwargs: ``max_iters`` or ``max_epochs``, and further arguments of the base.

    Raises:
        ValueError: ``loss_weighting`` is unknown.
    """

    dataloader_iterator: Any

    def __init__(self, runner: Any, dataloader: Any, loss_weighting: LossWeighting = "tokens", **kwargs: Any) -> None:
        check_weighting(loss_weighting)
        self.loss_weighting = loss_weighting
        self.accumulation = counts = _accumulation(runner)
        with torch.random.fork_rng(devices=[]):
            super().__init__(runner=runner, dataloader=fit_sampler(dataloader, counts), **kwargs)
        if not self.dataloader.num_workers:
            self.dataloader_iterator = _WithoutPause(self.dataloader_iterator)
        _tell_epochs(self.dataloader)
        fit_deepspeed(runner)
        send_contiguous_weights(runner)
        runner.param_schedulers = fit_schedule(
            runner.param_schedulers, self.max_iters, kwargs.get("max_epochs"), len(self.dataloader)
        )
        fit_intervals(runner, counts)
        runner.resume = functools.partial(_resume_checked, runner, runner.resume)

    def run(self) -> Any:
        """Launch training.

        Raises:
            FolderInUseError: Another training writes to this work directory.
            NonFiniteError: The checkpoint that was resumed holds nan or inf.
            ResumeError: It was written between two updates.
            ValueError: The tokenizer has tokens that the LLM has no word embeddings for.
        """
        lock = folder_lock(self.runner.work_dir, "training") if is_main_process() else contextlib.nullcontext()
        with lock:
            self._prepare()
            self._weigh_losses()
            return super().run()

    def run_iter(self, data_batch: Any) -> None:
        """Train on a micro-batch; the last one ends its step, which DeepSpeed would leave open otherwise."""
        end_step = getattr(self.runner.model, "set_gradient_accumulation_boundary", None)
        if end_step is not None and self._iter + 1 == self._max_iters and self._max_iters % self.accumulation:
            end_step(True)
        super().run_iter(data_batch)

    def _weigh_losses(self) -> None:
        """Let batches of one step know their weights."""
        model = unwrap_model(self.runner.model)
        if not hasattr(model, "loss_counts"):
            if self.accumulation * get_world_size() > 1:
                warn(f"{type(model).__name__} has no loss_counts, so that micro-batches weigh the same")
            return
        self.dataloader_iterator = WeightedBatches(
            self.dataloader_iterator,
            model,
            self.loss_weighting,
            self.accumulation,
            self._iter,
            self._max_iters,
            divides_alike=hasattr(self.runner, "strategy"),
        )

    def _prepare(self) -> None:
        """Look at what is about to be trained, and go to the place of a resumed run."""
        check_vocabulary(unwrap_model(self.runner.model), self.dataloader.dataset)
        warn_about_rounding(unwrap_model(self.runner.model), self.runner.optim_wrapper)
        self.runner.message_hub.update_info(FACTS_KEY, describe_run(self.runner))
        if self._iter == 0:
            return
        if bad := nonfinite_parameters(self.runner.model):
            raise NonFiniteError(
                f"{self.runner._load_from or 'the checkpoint'} holds nan or inf in {len(bad)} trained tensors, e.g. "
                f"{bad[0]}; resume an earlier one"
            )
        if self._iter >= self._max_iters:
            warn(
                f"nothing is left to train: the checkpoint is of step {self._iter} of {self._max_iters}. To train "
                "longer, start a new run from its weights (model.pretrained_pth)"
            )
        elif self._iter % self.accumulation:
            raise ResumeError(
                f"{self.runner._load_from} is of step {self._iter}, between two updates of {self.accumulation} steps, "
                "and lacks the gradients so far; resume a checkpoint of a step that is divisible by that"
            )
        if _can_skip(self.dataloader):
            self.dataloader_iterator = _ResumedIterator(self.dataloader_iterator, self._iter, self._saved_state())

    def _saved_state(self) -> dict[str, Any] | None:
        states = self.runner.message_hub.runtime_info.get(STATES_KEY)
        if states is None or get_rank() >= len(states):
            print_log(
                "The checkpoint has no random state for this process (written without RandomStateHook, or by fewer "
                "processes): dropout and the like will differ from an uninterrupted run.",
                logger="current",
                level=logging.WARNING,
            )
            return None
        return states[get_rank()]


class _WithoutPause:
    """mmengine's endless iterator without its two seconds between epochs, in which workers of the last one may end.

    Args:
        inner: That of a loader without workers.
    """

    def __init__(self, inner: Any) -> None:
        self._dataloader, self._iterator, self._epoch = inner._dataloader, inner._iterator, inner._epoch

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            self._epoch += 1
            sampler: Any = getattr(self._dataloader.batch_sampler, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self._epoch)
            self._iterator = iter(self._dataloader)
            return next(self._iterator)


def _tell_epochs(dataloader: DataLoader) -> None:
    """Let a data set that draws anew in every epoch know of it when the sampler does."""
    sampler: Any = getattr(dataloader.batch_sampler, "sampler", None)
    datasets = [part for part in nested_datasets(dataloader.dataset) if hasattr(part, "set_epoch")]
    if not datasets or not hasattr(sampler, "set_epoch"):
        return
    of_sampler = sampler.set_epoch

    def set_epoch(epoch: int) -> None:
        of_sampler(epoch)
        for dataset in datasets:
            dataset.set_epoch(epoch)

    sampler.set_epoch = set_epoch


def _accumulation(runner: Any) -> int:
    """Steps between two updates."""
    if hasattr(runner, "strategy"):
        return int(getattr(runner.strategy, "config", {}).get("gradient_accumulation_steps", 1))
    wrapper = runner.optim_wrapper
    stated = wrapper.get("accumulative_counts") if isinstance(wrapper, dict) else wrapper._accumulative_counts
    return int(stated or 1)


def _resume_checked(runner: Any, resume: Callable[..., Any], filename: str, *args: Any, **kwargs: Any) -> Any:
    """A runner's own ``resume`` for a checkpoint that is whole and of a run with the same settings."""
    check_resume(runner, filename)
    return resume(filename, *args, **kwargs)


def _can_skip(dataloader: DataLoader) -> bool:
    """Tell whether batches or indices can be left out before they are loaded; else mmengine's slow way is taken."""
    return type(dataloader.batch_sampler) is BatchSampler or hasattr(dataloader.batch_sampler, "skipped")


class _ResumedIterator:
    """Iterator over batches of a loop that resumes after ``steps`` of them.

    The first ``steps`` calls, mmengine's way to skip, return None at no cost; the next one opens the data at its place
    and sets the random state.

    Args:
        inner: mmengine's endless iterator over the loader, which is set to the right place.
        steps: Number of batches that were consumed.
        state: Random state after them, or None.
    """

    def __init__(self, inner: Any, steps: int, state: dict[str, Any] | None) -> None:
        self._inner = inner
        self._steps = steps
        self._left = steps
        self._state = state

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self._left > 0:
            self._left -= 1
            return None
        if self._steps:
            self._open()
            self._steps = 0
        return next(self._inner)

    def _open(self) -> None:
        loader = self._inner._dataloader
        sampler = loader.batch_sampler.sampler
        epoch, batches = divmod(self._steps, len(loader))
        if isinstance(sampler, InfiniteSampler):
            epoch, batches = 0, self._steps
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        # Opening a loader draws one random number: in an uninterrupted run that was before the state was saved, unless
        # the checkpoint was written at the very end of an epoch.
        if batches == 0:
            self._restore()
        if hasattr(loader.batch_sampler, "skipped"):
            loader.batch_sampler.skipped = batches
        else:
            loader.batch_sampler.sampler = _SkipOnce(sampler, batches * loader.batch_sampler.batch_size)
        self._inner._epoch = epoch
        self._inner._iterator = iter(loader)
        if batches:
            self._restore()

    def _restore(self) -> None:
        if self._state is not None:
            set_random_state(self._state)


class _SkipOnce:
    """A sampler whose first pass leaves out the first ``count`` indices."""

    def __init__(self, sampler: Any, count: int) -> None:
        self._sampler = sampler
        self._count = count

    def __iter__(self) -> Iterator[int]:
        indices = iter(self._sampler)
        for _ in range(self._count):
            next(indices, None)
        self._count = 0
        yield from indices

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)
