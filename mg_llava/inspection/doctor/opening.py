"""Opens sources leniently: a part that is broken is a finding, and everything else is checked all the same."""

import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.batch import TokenCount
from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes.convert import read_table
from mg_llava.data.boxes.policy import MissingBoxes
from mg_llava.data.config import MIXED, build_transform, walk_sources
from mg_llava.data.dataset import SETTINGS, LLaVADataset
from mg_llava.data.records.index import draw
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.data.settings import GROUPS, FaultPolicy, build_group, build_tokens, unknown_settings
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.tokenizer import TokenizerError, build_tokenizer
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS, Findings, Found, Level
from mg_llava.inspection.doctor.sources import Source
from mg_llava.registry import DATASETS

_FEW = 3
_JSON = (".json", ".jsonl")
_DEFAULTS: dict[str, Any] = dict.fromkeys(SETTINGS)
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
        _open_settings(source, arguments)
        source.findings.levels = _levels(source.faults)
        self._open_records(source)
        self._open_text_parts(source)
        _open_picture_parts(source)
        self._open_boxes(source)
        return source

    def _open_records(self, source: Source) -> None:
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
        drawn = draw(count, source.draw.max_dataset_length, source.draw.seed)
        source.indices = np.asarray(drawn, dtype=np.int64)
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
        source.table, source.bad_boxes = self._boxes[place]


def _is_ours(kind: Any) -> bool:
    """Whether a type is ``LLaVADataset``, which it is where none is given, or a kind of it."""
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    return kind is None or (inspect.isclass(found) and issubclass(found, LLaVADataset))


def _levels(faults: FaultPolicy) -> dict[str, Level]:
    """Weights of findings under the policies of a source."""
    policies = {"no_label": "no_label", "over_budget": "over_budget"}
    policies |= {"missing_boxes": "missing_box", "bad_boxes": "bad_box_record"}
    policies |= dict.fromkeys(PICTURE_FAULTS.values(), "bad_image")
    return {kind: "error" if getattr(faults, name) == "error" else "warning" for kind, name in policies.items()}


def _open_settings(source: Source, arguments: Mapping[str, Any]) -> None:
    """Build what ``LLaVADataset`` builds of its settings; what it would refuse is a finding."""
    problems = list(unknown_settings(set(arguments) - {"type"}, SETTINGS, "LLaVADataset"))

    def attempt(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except _BROKEN_PART as error:
            problems.append(str(error))
            return None

    groups = {name: attempt(partial(build_group, name, source.arguments[name])) for name in GROUPS}
    source.faults = groups["faults"] or source.faults
    source.boxes = groups["boxes"] or source.boxes
    source.draw = groups["draw"] or source.draw
    tokens = attempt(partial(build_tokens, source.arguments["tokens"]))
    source.budget = replace(groups["budget"] or source.budget, tokens=tokens or TokenCount(0))
    attempt(partial(MissingBoxes, source.faults.missing_box, source.boxes.proposer))
    attempt(partial(build_transform, source.boxes.box_augmentation))
    source.findings.extend(Found("config_setting", detail=problem) for problem in problems)


def _open_picture_parts(source: Source) -> None:
    try:
        source.processor = build_transform(source.arguments["picture_processor"])
    except _BROKEN_PART as error:
        source.findings.add(Found("config_setting", "picture_processor", detail=str(error)))
    weaker = ["deep_gray", "transparency"] if getattr(source.processor, "mode", None) == "exact" else []
    weaker += ["exif_rotation"] if source.apply_exif else []
    source.findings.levels = {**source.findings.levels, **dict.fromkeys(weaker, "note")}
    folder = source.arguments["image_folder"]
    source.has_folder = folder is not None and os.path.isdir(folder)


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
    inverted = sum("x1 <= x2" in one.detail for one in found)
    if inverted >= _FEW and inverted > len(table) // 2:
        detail = f"at least {inverted} of {len(table) + len(problems)} records have x2 < x1 or y2 < y1"
        findings.add(Found("source_boxes_convention", path, detail=detail))
    hidden = len(problems) - len(found)
    if hidden > 0:
        findings.add(found[-1], hidden)
    return table, frozenset(one.id for one in found)


def _bad_box(message: str) -> Found:
    """A message of the box reader, which begins with the id, as a finding."""
    owner, _, detail = message.partition(": ")
    return Found("bad_boxes", owner.removeprefix("id ").strip("'\""), detail=detail)
