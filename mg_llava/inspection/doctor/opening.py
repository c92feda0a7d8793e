"""Opens sources leniently: a part that is broken is a finding, and everything else is checked all the same."""

import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes.convert import read_table
from mg_llava.data.boxes.policy import MissingBoxes
from mg_llava.data.config import MIXED, walk_sources
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.faults import FAULTS, SkippedSamples
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.data.records.survey import draw
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.tokenizer import TokenizerError, build_tokenizer
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS, Findings, Found, Level
from mg_llava.inspection.doctor.sources import Source
from mg_llava.registry import DATASETS, TRANSFORMS

_JSON = (".json", ".jsonl")
_PARAMETERS = list(inspect.signature(LLaVADataset.__init__).parameters.values())[1:]
_DEFAULTS = {p.name: None if p.default is p.empty else p.default for p in _PARAMETERS}
_BROKEN_PART = (ValueError, TypeError, KeyError, ImportError)


def open_sources(dataset: Mapping[str, Any], limit: int | None = None) -> list[Source]:
    """Open every source; what fails is in the findings of its source.

    Args:
        dataset: The settings of the training set.
        limit: Check at most this many records of a source, evenly spread.
    """
    opener = _Opener(limit)
    sources = [opener.open(arguments, number) for number, arguments in enumerate(walk_sources(dataset))]
    if isinstance(dataset.get(MIXED), Sequence):
        names = Counter(source.name for source in sources)
        for source in sources:
            if names.pop(source.name, 1) > 1:
                detail = f"several sources are called {source.name}; give each a name of its own"
                source.findings.add(Found("config_setting", "name", detail=detail))
    return sources


class _Opener:
    """Opens sources; tokenizers and box files that several of them name are read once.

    Args:
        limit: Largest number of records to check of a source.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._tokenizers: dict[str, Any] = {}
        self._boxes: dict[str, tuple[BoxTable | None, frozenset[str]]] = {}

    def open(self, arguments: Mapping[str, Any], number: int) -> Source:
        """A source from its arguments."""
        merged = {**_DEFAULTS, **arguments}
        path = merged["data_path"]
        source = Source(str(merged["name"] or (Path(path).stem if path else f"source {number}")), merged)
        if not path or not _is_ours(arguments.get("type")):
            detail = f"type {arguments.get('type')}; LLaVADataset and mixtures of it are known"
            source.findings.add(Found("unknown_dataset", detail=detail))
            return source
        source.findings.levels = _levels(merged)
        _check_settings(source, sorted(set(arguments) - set(_DEFAULTS) - {"type"}))
        self._open_records(source)
        self._open_text_parts(source)
        _open_picture_parts(source)
        self._open_boxes(source)
        return source

    def _open_records(self, source: Source) -> None:
        arguments = source.arguments
        try:
            records = open_records(source.data_path)
            # Reads the file, so that it may fail.
            count = len(records)
        except FileNotFoundError as error:
            source.findings.add(Found("config_path", source.data_path, detail=str(error)))
            return
        except (RecordError, OSError, ImportError) as error:
            source.findings.add(Found("records_file", source.data_path, detail=str(error)))
            return
        source.records = records
        source.indices = np.asarray(draw(count, arguments["max_dataset_length"], arguments["seed"]), dtype=np.int64)
        if not count:
            source.findings.add(Found("no_records", source.data_path, detail="the file holds no records"))
        elif self._limit is not None and self._limit < len(source.indices):
            places = np.linspace(0, len(source.indices) - 1, self._limit)
            source.indices = source.indices[np.unique(places.astype(np.int64))]

    def _open_text_parts(self, source: Source) -> None:
        spec = source.arguments["tokenizer"]
        name = json.dumps(spec, sort_keys=True, default=str)
        try:
            if name not in self._tokenizers:
                self._tokenizers[name] = build_tokenizer(spec)
            source.tokenizer = self._tokenizers[name]
        except (TokenizerError, TypeError, ImportError) as error:
            kind = "config_path" if "does not exist" in str(error) else "config_setting"
            source.findings.add(Found(kind, "tokenizer", detail=str(error)))
        try:
            source.template = Template.build(source.arguments["template"])
        except (ValueError, TypeError) as error:
            source.findings.add(Found("config_setting", "template", detail=str(error)))

    def _open_boxes(self, source: Source) -> None:
        path = source.arguments["box_path"]
        if path is None:
            return
        place = os.path.abspath(path)
        if place not in self._boxes:
            # Faults of a file that several sources share are findings of the first.
            self._boxes[place] = _read_boxes(source.findings, os.fspath(path))
        source.boxes, source.bad_boxes = self._boxes[place]


def _is_ours(kind: Any) -> bool:
    """Whether a type is ``LLaVADataset``, which it is where none is given, or a kind of it."""
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    return kind is None or (inspect.isclass(found) and issubclass(found, LLaVADataset))


def _levels(arguments: Mapping[str, Any]) -> dict[str, Level]:
    """Weights of findings under the policies of a source."""
    policies = {"no_label": "no_label", "over_budget": "over_budget"}
    policies |= {"missing_boxes": "missing_box", "bad_boxes": "bad_box_record"}
    policies |= dict.fromkeys(PICTURE_FAULTS.values(), "bad_image")
    return {kind: "error" if arguments[name] == "error" else "warning" for kind, name in policies.items()}


def _check_settings(source: Source, unknown: Sequence[str]) -> None:
    """Findings about settings that ``LLaVADataset`` would refuse, whatever the data is."""
    arguments = source.arguments
    problems = []
    if unknown:
        problems.append(f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(_DEFAULTS))}")
    if arguments["bad_box_record"] not in ("error", "drop"):
        problems.append(f"bad_box_record is {arguments['bad_box_record']!r}; allowed: 'error', 'drop'")
    if not arguments["repeat"] > 0:
        problems.append(f"repeat is {arguments['repeat']}; it must be positive; leave the source out instead")
    try:
        source.budget = TokenBudget(
            arguments["context_length"], arguments["tokens_per_image"], arguments["max_length"]
        )
    except ValueError as error:
        problems.append(str(error))
    policies = {name: arguments[name] for name in FAULTS}
    trials: list[Callable[[], Any]] = [
        lambda: SkippedSamples(0, policies, arguments["max_bad_samples"], source.data_path),
        lambda: MissingBoxes(arguments["missing_box"], arguments["proposer"]),
        lambda: _build(arguments["box_augmentation"]),
    ]
    for trial in trials:
        try:
            trial()
        except _BROKEN_PART as error:
            problems.append(str(error))
    source.findings.extend(Found("config_setting", detail=problem) for problem in problems)


def _open_picture_parts(source: Source) -> None:
    try:
        source.processor = _build(source.arguments["picture_processor"])
    except _BROKEN_PART as error:
        source.findings.add(Found("config_setting", "picture_processor", detail=str(error)))
    weaker = ["deep_gray", "transparency"] if getattr(source.processor, "mode", None) == "exact" else []
    weaker += ["exif_rotation"] if source.apply_exif else []
    source.findings.levels = {**source.findings.levels, **dict.fromkeys(weaker, "note")}
    folder = source.arguments["image_folder"]
    source.has_folder = folder is not None and os.path.isdir(folder)


def _build(spec: Any) -> Any:
    return TRANSFORMS.build(dict(spec)) if isinstance(spec, Mapping) else spec


def _read_boxes(findings: Findings, path: str) -> tuple[BoxTable | None, frozenset[str]]:
    """The good records of a box file, and the ids of the bad ones."""
    try:
        if Path(path).suffix not in _JSON:
            return BoxTable.open(path), frozenset()
        table, problems = read_table(path, "drop")
    except FileNotFoundError as error:
        findings.add(Found("config_path", path, detail=f"box_path: {error}"))
        return None, frozenset()
    except (RecordError, OSError) as error:
        findings.add(Found("box_file", path, detail=str(error)))
        return None, frozenset()
    found = [_bad_box(message) for message in problems.messages]
    findings.extend(found)
    hidden = len(problems) - len(found)
    if hidden > 0:
        findings.add(found[-1], hidden)
    return table, frozenset(one.id for one in found)


def _bad_box(message: str) -> Found:
    """A message of the box reader, which begins with the id, as a finding."""
    owner, _, detail = message.partition(": ")
    return Found("bad_boxes", owner.removeprefix("id ").strip("'\""), detail=detail)
