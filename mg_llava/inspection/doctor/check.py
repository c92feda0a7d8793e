"""The whole check: sources, texts, pictures, boxes, evaluation data; every step over processes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.store import picture_keys
from mg_llava.data.config import ConfigError, find_dataset
from mg_llava.data.settings import picture_problems
from mg_llava.inspection.doctor.boxes import LinkCheck, check_links
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.images import PictureCache, PictureCheck, PictureFacts, check_pictures
from mg_llava.inspection.doctor.leakage import EvalPicture, hash_eval_pictures, list_eval_pictures
from mg_llava.inspection.doctor.opening import open_sources
from mg_llava.inspection.doctor.report import Report
from mg_llava.inspection.doctor.sources import Source
from mg_llava.inspection.doctor.summary import Gathered, conclude
from mg_llava.inspection.doctor.texts import TextResult, UsedRecord, check_template, check_texts
from mg_llava.registry import MODELS
from mg_llava.tokens import tokens_without_embeddings
from mg_llava.work.pool import available_cores, run_jobs, split

_RECORDS_A_JOB = 256
_PICTURES_A_JOB = 32


@dataclass(frozen=True)
class Options:
    """How to check.

    Attributes:
        workers: Number of processes; None for one per core.
        limit: Check at most this many records of each source, evenly spread.
        cache: File that keeps what is known of pictures; None for none.
        evaluation: Folders or files with evaluation pictures.
        show_progress: Whether there are progress bars, on stderr.
    """

    workers: int | None = None
    limit: int | None = None
    cache: str | Path | None = None
    evaluation: tuple[str, ...] = ()
    show_progress: bool = True


@dataclass(frozen=True)
class LLMSizes:
    """Numbers of an LLM's configuration; None where unknown.

    Attributes:
        positions: Number of positions that it knows.
        embeddings: Number of its word embeddings.
    """

    positions: int | None = None
    embeddings: int | None = None


def check_config(config: Any, options: Options) -> Report:
    """Check the training data of a config.

    Raises:
        ConfigError: It has no training set.
        FileNotFoundError: Evaluation data does not exist.
        ValueError: Evaluation data is broken.
        RuntimeError: A worker process was killed.
    """
    return check_dataset(find_dataset(config), options, _sizes_of_llm(config), _tokens(config))


def check_dataset(
    dataset: Mapping[str, Any], options: Options, llm: LLMSizes | None = None, tokens: TokenCount | None = None
) -> Report:
    """Check a training set; see ``check_config``.

    Args:
        dataset: Its settings as plain values.
        options: How to check.
        llm: What is known of the config's LLM.
        tokens: Tokens of a picture in the config's model; None where unknown.
    """
    llm = llm or LLMSizes()
    sources = open_sources(dataset, options.limit)
    if not sources:
        raise ConfigError("the training set has no sources")
    folders = list(dict.fromkeys(str(source.arguments["image_folder"]) for source in sources if source.has_folder))
    listed = [picture for path in options.evaluation for picture in list_eval_pictures(path, folders)]
    # Several questions may be about one picture.
    evaluation = list({picture.path or picture.name: picture for picture in listed}.values())
    gathered = [Gathered(template=check_template(source)) for source in sources]
    for source in sources:
        stated = source.budget.tokens
        if tokens is not None and stated(1, 0) and stated(1, 0) != tokens(1, 0):
            detail = f"{stated(1, 0)} tokens, the model gives {tokens(1, 0)}"
            source.findings.add(Found("token_count", detail=detail))
        if source.tokenizer is not None and llm.embeddings is not None:
            problem = tokens_without_embeddings(source.tokenizer, llm.embeddings)
            source.findings.extend([Found("no_embedding", "tokenizer", detail=problem)] if problem else [])
    _check_texts(sources, gathered, options)
    names = _hash_evaluation(evaluation, sources[0], options) if evaluation else {}
    facts = _check_pictures(sources, gathered, options, bool(names))
    _check_links(sources, gathered, facts, names, options)
    return Report(
        [
            conclude(source, one, llm.positions, options.limit is not None)
            for source, one in zip(sources, gathered, strict=True)
        ],
        len(names) if options.evaluation else None,
    )


def _run(
    function: Any, jobs: Sequence[Any], sizes: Sequence[int], shared: Any, title: str, options: Options
) -> Iterator[Any]:
    workers = options.workers or available_cores()
    with tqdm(total=sum(sizes), desc=title, unit="", unit_scale=True, disable=not options.show_progress) as bar:
        for size, result in zip(sizes, run_jobs(function, jobs, shared, min(workers, len(jobs))), strict=True):
            yield result
            bar.update(size)


def _check_texts(sources: Sequence[Source], gathered: Sequence[Gathered], options: Options) -> None:
    jobs = _jobs_of([len(source.indices) for source in sources])
    results: Iterator[TextResult] = _run(check_texts, jobs, _sizes(jobs), sources, "records", options)
    for (number, _, _), result in zip(jobs, results, strict=True):
        sources[number].findings.extend(result.found)
        gathered[number].used += result.used
    for source, one in zip(sources, gathered, strict=True):
        source.findings.extend(_duplicates(source, one.used))
        if any(record.images for record in one.used):
            source.findings.extend(_check_picture_settings(source))
        if len(source.indices) and not any(record.has_labels for record in one.used):
            source.findings.add(Found("no_records", detail=f"none of {len(source.indices)} records"))


def _check_picture_settings(source: Source) -> Iterator[Found]:
    folder, processor = source.arguments["image_folder"], source.arguments["picture_processor"]
    for error in picture_problems(folder, processor, source.budget):
        if isinstance(error, FileNotFoundError):
            yield Found("config_path", str(folder), detail=f"{error}; no picture was checked")
        else:
            yield Found("config_setting", detail=str(error))


def _duplicates(source: Source, used: Sequence[UsedRecord]) -> Iterator[Found]:
    first: dict[str, UsedRecord] = {}
    for record in used:
        other = first.setdefault(record.id, record)
        if other is record:
            continue
        shares_boxes = source.table is not None and record.images and record.images != other.images
        kind = "duplicate_id_boxes" if shares_boxes else "duplicate_id"
        yield Found(kind, record.id, record.row, f"first in record {other.row}")


def _hash_evaluation(evaluation: Sequence[EvalPicture], first: Source, options: Options) -> dict[str, str]:
    jobs = split(len(evaluation), _PICTURES_A_JOB)
    sizes = [stop - start for start, stop in jobs]
    names: dict[str, str] = {}
    for result in _run(hash_eval_pictures, jobs, sizes, evaluation, "evaluation", options):
        names = {**result.names, **names}
        first.findings.extend(result.found)
    return names


def _check_pictures(
    sources: Sequence[Source], gathered: Sequence[Gathered], options: Options, has_evaluation: bool
) -> dict[tuple[str, int | None], PictureFacts]:
    """Facts of every picture file, by path and limit."""
    wanted = {
        (source.path_of(name), source.faults.max_pixels): None
        for source, one in zip(sources, gathered, strict=True)
        if source.has_folder
        for record in one.used
        for name in record.images
        if not source.is_outside(name)
    }
    cache = None if options.cache is None else PictureCache(options.cache)
    check = PictureCheck(
        known={} if cache is None else cache.read(),
        paths=[path for path, _ in wanted],
        limits=[limit for _, limit in wanted],
        needs_content=has_evaluation or any(source.table and source.table.has_pictures for source in sources),
    )
    jobs = split(len(wanted), _PICTURES_A_JOB)
    sizes = [stop - start for start, stop in jobs]
    facts: dict[tuple[str, int | None], PictureFacts] = {}
    for results in _run(check_pictures, jobs, sizes, check, "pictures", options):
        if cache is not None:
            cache.append(cached for is_new, cached in results if is_new)
        facts.update({(cached.path, cached.max_pixels): cached.facts for _, cached in results})
    return facts


def _check_links(
    sources: Sequence[Source],
    gathered: Sequence[Gathered],
    facts: Mapping[tuple[str, int | None], PictureFacts],
    evaluation: Mapping[str, str],
    options: Options,
) -> None:
    jobs = _jobs_of([len(one.used) for one in gathered])
    check = LinkCheck(sources, [one.used for one in gathered], facts, evaluation)
    for (number, _, _), result in zip(
        jobs, _run(check_links, jobs, _sizes(jobs), check, "boxes", options), strict=True
    ):
        sources[number].findings.extend(result.found)
        gathered[number].links.append(result._replace(found=[]))
    if options.limit is None:
        _find_unused_boxes(sources, gathered)


def _find_unused_boxes(sources: Sequence[Source], gathered: Sequence[Gathered]) -> None:
    """Several sources may share a box file."""
    wanted: dict[str, set[str]] = {}
    for source, one in zip(sources, gathered, strict=True):
        keys = wanted.setdefault(str(source.arguments["box_path"]), set())
        keys.update(key for record in one.used for key in picture_keys(record.id, len(record.images)))
    for source in sources:
        # Told once for a file, with the first of its sources.
        keys = wanted.pop(str(source.arguments["box_path"]), set())
        if source.table is None or not keys or not len(source.records):
            continue
        unused = len(source.table) - sum(key in keys for key in source.table.keys())
        if unused:
            ids = ", ".join(repr(key) for key in islice((key for key in source.table.keys() if key not in keys), 3))
            source.findings.add(Found("unused_boxes", detail=f"such as {ids}"), unused)


def _tokens(config: Any) -> TokenCount | None:
    """Tokens of a picture in the config's model, where its sizes are known."""
    model = config.to_dict().get("model")
    try:
        return None if model is None else MODELS.build({"type": "mg_llava.count_tokens", "model": model})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the model is for others to check
        return None


def _sizes_of_llm(config: Any) -> LLMSizes:
    """Numbers of the config's LLM, where its files are here."""
    path = ((config.to_dict().get("model") or {}).get("llm") or {}).get("path")
    try:
        content = json.loads((Path(str(path)) / "config.json").read_text())
        values = [content.get(name) for name in ("max_position_embeddings", "vocab_size")]
    except (TypeError, OSError, ValueError, AttributeError):
        return LLMSizes()
    return LLMSizes(*(value if isinstance(value, int) else None for value in values))


def _jobs_of(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(number, *part) for number, count in enumerate(counts) for part in split(count, _RECORDS_A_JOB)]


def _sizes(jobs: Sequence[tuple[int, int, int]]) -> list[int]:
    return [stop - start for _, start, stop in jobs]
