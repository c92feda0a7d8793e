"""Opens sources leniently: a part that is broken is a finding, and everything else is checked all the same."""

import contextlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes.convert import read_box_table
from mg_llava.data.boxes.policy import MissingBoxes
from mg_llava.data.choices import wrong_choice
from mg_llava.data.config import MIXED, build_transform, walk_sources
from mg_llava.data.dataset import SETTINGS, LLaVADataset
from mg_llava.data.records.formats import RecordFormat, detect_format, to_llava
from mg_llava.data.records.index import draw
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import RecordError, parse_record
from mg_llava.data.settings import GROUPS, build_group, build_tokens, unknown_settings
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.tokenizer import TokenizerError, build_tokenizer
from mg_llava.inspection.doctor.findings import PICTURE_FAULTS, Found
from mg_llava.inspection.doctor.sources import OpenedSource
from mg_llava.registry import DATASETS, SCOPE
from mg_llava.work.urls import local_file

_FEW = 3
_LOOKED_AT = 100
"""Records whose format is looked at."""
_BROKEN_PART = (ValueError, TypeError, KeyError, ImportError)
_POLICIES = {"no_label": "no_label", "over_budget": "over_budget", "missing_boxes": "missing_box"}
_POLICIES |= {"bad_boxes": "bad_box_record", **dict.fromkeys(PICTURE_FAULTS.values(), "bad_image")}
"""The policies that say how much a kind of finding weighs."""


def open_sources(dataset: Mapping[str, Any], limit: int | None = None) -> list[OpenedSource]:
    """Open every source; what fails is in the findings of its source.

    Args:
        dataset: The settings of the training set.
        limit: Check at most this many records of a source, evenly spread.
    """
    known: dict[str, Any] = {}
    sources = [_open(arguments, number, limit, known) for number, arguments in enumerate(walk_sources(dataset))]
    if isinstance(dataset.get(MIXED), Sequence):
        names = Counter(source.name for source in sources)
        for source in sources:
            if names.pop(source.name, 1) > 1:
                detail = f"several sources are called {source.name}; give each a name of its own"
                source.tell("config_setting", "name", detail)
    return sources


def _open(arguments: Mapping[str, Any], number: int, limit: int | None, known: dict[str, Any]) -> OpenedSource:
    """A source from its arguments; ``known`` keeps tokenizers and box files, which several sources may share."""
    merged = {**dict.fromkeys(SETTINGS), **arguments}
    path = merged["data_path"]
    source = OpenedSource(str(merged["name"] or (Path(path).stem if path else f"source {number}")), merged)
    kind = arguments.get("type")
    try:
        is_known = _is_known_type(kind)
    except KeyError as error:
        is_known = False
        if str(kind).startswith(f"{SCOPE}."):
            source.tell("config_setting", "type", str(error.args[0]))
            return source
    if not is_known:
        source.tell("unknown_dataset", detail=f"type {kind}; LLaVADataset and mixtures of it are known")
        return source
    if not path:
        source.tell("config_setting", "data_path", "LLaVADataset needs data_path, the file of its records")
        return source
    _open_settings(source, arguments)
    _open_records(source, limit)
    _open_text_parts(source, known)
    _open_picture_parts(source)
    if merged["box_path"] is not None:
        path = os.path.abspath(merged["box_path"])
        if path not in known:  # faults of a shared file are findings of the first source
            known[path] = _read_boxes(source, os.fspath(merged["box_path"]))
        source.table, source.bad_boxes = known[path]
    return source


def _is_known_type(kind: Any) -> bool:
    """Tell whether a type is ``LLaVADataset``, which it is where none is given, or a kind of it."""
    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    return kind is None or (inspect.isclass(found) and issubclass(found, LLaVADataset))


def _open_settings(source: OpenedSource, arguments: Mapping[str, Any]) -> None:
    """Build what ``LLaVADataset`` builds of its settings; what it would refuse is a finding."""
    for problem in unknown_settings(set(arguments) - {"type"}, SETTINGS, "LLaVADataset"):
        source.tell("config_setting", detail=problem)
    groups: dict[str, Any] = {name: kind() for name, kind in GROUPS.items()}
    for name in GROUPS:
        with source.telling("config_setting", "", *_BROKEN_PART):
            groups[name] = build_group(name, source.arguments[name])
    source.faults, source.draw, source.budget, boxes = (groups[name] for name in ("faults", "draw", "budget", "boxes"))
    with source.telling("config_setting", "", *_BROKEN_PART):
        source.budget = source.budget.counting(build_tokens(source.arguments["tokens"]))
    with source.telling("config_setting", "", *_BROKEN_PART):
        MissingBoxes(source.faults.missing_box, boxes.proposer)
    with source.telling("config_setting", "", *_BROKEN_PART):
        build_transform(boxes.box_augmentation)
    for kind, name in _POLICIES.items():
        source.findings.levels[kind] = "error" if getattr(source.faults, name) == "error" else "warning"


def _open_records(source: OpenedSource, limit: int | None) -> None:
    with source.telling("records_file", source.data_path, RecordError, OSError, ImportError):
        records = open_records(source.data_path)
        drawn = draw(len(records), source.draw.max_dataset_length, source.draw.seed)  # the length reads the file
        source.records, source.indices = records, np.asarray(drawn, dtype=np.int64)
        if not len(records):
            source.tell("no_records", source.data_path, "the file holds no records")
        elif limit is not None and limit < len(source.indices):
            places = np.linspace(0, len(source.indices) - 1, limit)
            source.indices = source.indices[np.unique(places.astype(np.int64))]
        _judge_format(source)


def _judge_format(source: OpenedSource) -> None:
    """Name the format of records that cannot be read as what they are said to be."""
    for wrong in wrong_choice("format", source.form, RecordFormat):
        source.tell("config_setting", "format", wrong)
        source.arguments["format"] = None
    found: Counter[str] = Counter()
    for row in source.indices[:_LOOKED_AT].tolist():
        with contextlib.suppress(RecordError):
            raw = source.records[row]
            try:
                parse_record(to_llava(raw, source.form))
            except RecordError:
                found[detect_format(raw) or ""] += 1
    looked_at = min(_LOOKED_AT, len(source.indices))
    for form in sorted(set(found) - {"", source.form}):
        if 2 * found[form] >= looked_at:  # single ones are malformed
            detail = f"{found[form]} of the first {looked_at} look like format={form!r}"
            source.tell("records_format", source.data_path, detail)


def _open_text_parts(source: OpenedSource, known: dict[str, Any]) -> None:
    spec = source.arguments["tokenizer"]
    name = f"tokenizer {json.dumps(spec, sort_keys=True, default=str)}"
    with source.telling("config_setting", "tokenizer", TokenizerError, TypeError, ImportError):
        if name not in known:
            known[name] = build_tokenizer(spec)
        source.tokenizer = known[name]
    with source.telling("config_setting", "template", ValueError, TypeError):
        source.template = Template.build(source.arguments["template"])


def _open_picture_parts(source: OpenedSource) -> None:
    with source.telling("config_setting", "picture_processor", *_BROKEN_PART):
        source.processor = build_transform(source.arguments["picture_processor"])
    weaker = ["deep_gray", "transparency"] if getattr(source.processor, "mode", None) == "exact" else []
    weaker += ["exif_rotation"] if source.apply_exif else []
    source.findings.levels |= dict.fromkeys(weaker, "note")


def _read_boxes(source: OpenedSource, path: str) -> tuple[BoxTable | None, frozenset[str]]:
    """The good records of a box file, and the ids of the bad ones."""
    with source.telling("box_file", path, RecordError, OSError, what="box_path: "):
        file = local_file(path)
        if file.suffix not in (".json", ".jsonl"):
            return BoxTable.open(file), frozenset()
        table, problems = read_box_table(file, "drop")
        parts = [message.partition(": ") for message in problems.messages]  # they begin with the id
        found = [Found("bad_boxes", owner.removeprefix("id ").strip("'\""), None, rest) for owner, _, rest in parts]
        source.findings.extend(found)
        inverted = sum("x1 <= x2" in one.detail for one in found)
        if inverted >= _FEW and inverted > len(table) // 2:
            detail = f"at least {inverted} of {len(table) + len(problems)} records have x2 < x1 or y2 < y1"
            source.tell("source_boxes_convention", path, detail)
        if len(problems) > len(found):
            source.findings.add(found[-1], len(problems) - len(found))
        return table, frozenset(one.id for one in found)
    return None, frozenset()
