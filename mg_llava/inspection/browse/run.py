"""Choosing samples of a data set, and writing what the model sees of them into a folder."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.config import build_dataset, find_dataset, load_config
from mg_llava.data.mixture import sources_of
from mg_llava.inspection.browse.drawing import draw_sample
from mg_llava.inspection.browse.page import render_page
from mg_llava.inspection.browse.samples import SampleView, view_sample
from mg_llava.work.atomic import write_text

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Shows progress: takes items, their number and what they are, and gives the items."""


@dataclass(frozen=True)
class ChosenSample:
    """A sample to look at: its source, its number there and, where known, its number in the whole data set."""

    source: Any
    index: int
    position: int | None = None


def load_dataset(path: str | Path) -> tuple[Any, bool]:
    """Build the training data set of a config, and nothing else of it.

    Returns:
        The data set, and whether the config's model has a box branch.

    Raises:
        FileNotFoundError: There is no such config, or a file that it names is missing.
        ValueError: The config has no training data set, or its records cannot be used.
    """
    config = load_config(path)
    return build_dataset(find_dataset(config)), (config.get("model") or {}).get("box_projector", True) is not None


class SampleChooser:
    """Finds samples of a data set, or of one of its sources.

    Args:
        dataset: A ``LLaVADataset``, a mixture, or several of them concatenated.
        source: Name of the source to look in, whose own numbers count then; None for the whole data set.

    Raises:
        ValueError: There is no source of that name, or there are several.
    """

    def __init__(self, dataset: Any, source: str | None = None) -> None:
        self.dataset, self.sources = dataset, sources_of(dataset)
        self._names = ", ".join(part.name for part in self.sources)
        if source is not None:
            named = [part for part in self.sources if part.name == source]
            if len(named) != 1:
                found = f"{len(named) or 'no'} sources are named {source!r}"
                raise ValueError(f"{found}; the sources are: {self._names}")
            self.dataset, self.sources, self._names = named[0], named, source

    def by_position(self, positions: Iterable[int]) -> tuple[list[ChosenSample], list[str]]:
        """Samples by their numbers; and a message for each number that does not exist."""
        count, positions = len(self.dataset), list(dict.fromkeys(positions))
        found = [ChosenSample(*locate(self.dataset, place), place) for place in positions if 0 <= place < count]
        absent = [place for place in positions if not 0 <= place < count]
        return found, [f"sample {place} does not exist; there are samples 0 to {count - 1}" for place in absent]

    def by_id(self, ids: Sequence[str], watch: Watch) -> tuple[list[ChosenSample], list[str]]:
        """The first record with each id, over all sources; and a message for each id that no record has."""
        found: dict[str, ChosenSample | None] = dict.fromkeys(ids)
        waiting = set(ids)
        choices = (ChosenSample(source, index) for source in self.sources for index in range(len(source)))
        for choice in watch(choices, sum(map(len, self.sources)), "records"):
            record_id = choice.source.record(choice.index).id
            if record_id in waiting:
                found[record_id] = choice
                waiting.remove(record_id)
            if not waiting:
                break
        problems = [f"no record of {self._names} has the id {name!r}" for name in found if name in waiting]
        return [choice for choice in found.values() if choice is not None], problems

    def at_random(self, count: int, seed: int) -> tuple[list[ChosenSample], list[str]]:
        """``count`` different samples (all, where there are fewer), in the order of their numbers; no messages."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.dataset), min(count, len(self.dataset)), replace=False)
        return self.by_position(sorted(chosen.tolist()))


def locate(dataset: Any, position: int) -> tuple[Any, int]:
    """The source that a sample of a data set comes from, and its number there."""
    if hasattr(dataset, "locate"):
        number, index = dataset.locate(position)
        return locate(dataset.sources[number], index)
    if hasattr(dataset, "cumulative_sizes"):  # torch's ConcatDataset
        part = bisect_right(dataset.cumulative_sizes, position)
        start = dataset.cumulative_sizes[part - 1] if part else 0
        return locate(dataset.datasets[part], position - start)
    return dataset, position


def write_samples(
    choices: Sequence[ChosenSample],
    out: Path,
    watch: Watch,
    title: str = "samples",
    html: bool = False,
    font: Path | None = None,
    has_box_tokens: bool = True,
    problems: Sequence[str] = (),
) -> list[str]:
    """Write a PNG per sample, ``samples.json`` and, if asked for, ``index.html``; also when stopped on the way.

    Args:
        choices: The samples.
        out: Folder to write to; files in it are replaced, other ones stay.
        watch: Shows progress.
        title: Title of the page, such as the config.
        html: Whether to write the page.
        font: See ``draw_sample``.
        has_box_tokens: Whether the model has a box branch.
        problems: Messages about samples that could not be chosen, for page and JSON.

    Returns:
        A message for each sample that could not be made, after those of ``problems``.

    Raises:
        OSError: The folder cannot be written to, or the font cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    messages, done = list(problems), []
    try:
        for choice in watch(choices, len(choices), "samples"):
            try:
                view = view_sample(choice.source, choice.index, choice.position, has_box_tokens)
            except (ValueError, RuntimeError, OSError) as error:
                messages.append(f"{choice.source.name} [{choice.index}] cannot be used: {error}")
                continue
            picture = _file_name(view)
            draw_sample(view, font).save(out / picture)
            done.append((view, picture))
    finally:
        samples = ",\n".join(_to_json({**view.to_dict(), "drawing": picture}) for view, picture in done)
        head = f'{{"title": {_to_json(title)},\n"problems": {_to_json(messages)},\n"samples": [\n'
        write_text(out / "samples.json", f"{head}{samples}\n]}}\n")
        if html:
            write_text(out / "index.html", render_page(title, done, messages))
    return messages


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _file_name(view: SampleView) -> str:
    source, name = (re.sub(r"[^\w.-]+", "_", text)[:60] for text in (view.source, view.id))
    return f"{source}-{view.index:06d}-{name}.png"
