"""The whole check: sources, texts, pictures, boxes, evaluation data; every step over processes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mg_llava.batch import TokenCount
from mg_llava.data.config import ConfigError, find_dataset
from mg_llava.data.settings import picture_problems
from mg_llava.inspection.doctor.boxes import LinkCheck, LinkResult, check_links
from mg_llava.inspection.doctor.findings import Found
from mg_llava.inspection.doctor.images import PictureCheck, PictureFacts, append_cache, check_pictures, read_cache
from mg_llava.inspection.doctor.leakage import EvalPicture, hash_eval_pictures, list_eval_pictures
from mg_llava.inspection.doctor.opening import open_sources
from mg_llava.inspection.doctor.report import CheckReport
from mg_llava.inspection.doctor.sources import OpenedSource, UsedRecord
from mg_llava.inspection.doctor.summary import conclude
from mg_llava.inspection.doctor.texts import check_template, check_texts
from mg_llava.registry import MODELS
from mg_llava.tokens import tokens_without_embeddings
from mg_llava.work.json_text import load_object
from mg_llava.work.pool import available_cores, run_jobs, split

_RECORDS_A_JOB = 256
_PICTURES_A_JOB = 32


@dataclass(frozen=True)
class CheckOptions:
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
    """Numbers of positions and of word embeddings of an LLM; None where unknown."""

    positions: int | None = None
    embeddings: int | None = None


def check_training_data(config: Any, options: CheckOptions) -> CheckReport:
    """Check the training data of a config.

    Raises:
        ConfigError: It has no training set.
        FileNotFoundError: Evaluation data does not exist.
        ValueError: Evaluation data is broken.
        RuntimeError: A worker process was killed.
    """
    model = config.to_dict().get("model")
    return check_dataset(find_dataset(config), options, _sizes_of_llm(model), _tokens(model))


def check_dataset(
    dataset: Mapping[str, Any], options: CheckOptions, llm: LLMSizes | None = None, tokens: TokenCount | None = None
) -> CheckReport:
    """Check a training set from its settings as plain values; see ``check_training_data``.

    ``llm`` and ``tokens`` of a picture are what is known of the config's model.
    """
    llm = llm or LLMSizes()
    sources = open_sources(dataset, options.limit)
    if not sources:
        raise ConfigError("the training set has no sources")
    folders = list(dict.fromkeys(str(source.arguments["image_folder"]) for source in sources if source.has_folder))
    listed = [picture for path in options.evaluation for picture in list_eval_pictures(path, folders)]
    # Several questions may be about one picture.
    evaluation = list({picture.path or picture.name: picture for picture in listed}.values())
    for source in sources:
        source.summary["template"] = check_template(source)
        stated = source.budget.tokens(1, 0)
        if tokens is not None and stated and stated != tokens(1, 0):
            source.tell("token_count", detail=f"{stated} tokens, the model gives {tokens(1, 0)}")
        if source.tokenizer is not None and llm.embeddings is not None:
            problem = tokens_without_embeddings(source.tokenizer, llm.embeddings)
            if problem:
                source.tell("no_embedding", "tokenizer", problem)
    _check_texts(sources, options)
    names = _hash_evaluation(evaluation, sources[0], options) if evaluation else {}
    facts = _check_pictures(sources, options, bool(names))
    links = _check_links(LinkCheck(sources, facts, names), options)
    for source, result in zip(sources, links, strict=True):
        conclude(source, result, llm.positions, options.limit is not None)
    return CheckReport(sources, len(names) if options.evaluation else None)


def _run(
    function: Any, jobs: Sequence[Any], shared: Any, title: str, options: CheckOptions
) -> Iterator[tuple[Any, Any]]:
    """Each job, which ends with a start and a stop, and its result."""
    workers, sizes = options.workers or available_cores(), [job[-1] - job[-2] for job in jobs]
    with tqdm(total=sum(sizes), desc=title, unit="", unit_scale=True, disable=not options.show_progress) as bar:
        results = run_jobs(function, jobs, shared, min(workers, len(jobs)))
        for job, size, result in zip(jobs, sizes, results, strict=True):
            yield job, result
            bar.update(size)


def _jobs_of(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(number, *part) for number, count in enumerate(counts) for part in split(count, _RECORDS_A_JOB)]


def _check_texts(sources: Sequence[OpenedSource], options: CheckOptions) -> None:
    jobs = _jobs_of([len(source.indices) for source in sources])
    for (number, _, _), result in _run(check_texts, jobs, sources, "records", options):
        sources[number].findings.extend(result.found)
        sources[number].used += result.used
    for source in sources:
        source.findings.extend(_duplicates(source, source.used))
        if any(record.images for record in source.used):
            folder, processor = source.arguments["image_folder"], source.arguments["picture_processor"]
            counted = None if source.arguments.get("tokens") is None else source.budget.tokens
            for error in picture_problems(folder, processor, source.budget, counted):
                if isinstance(error, FileNotFoundError):
                    source.tell("config_path", str(folder), f"{error}; no picture was checked")
                else:
                    source.tell("config_setting", detail=str(error))
        if len(source.indices) and not any(record.has_labels for record in source.used):
            source.tell("no_records", detail=f"none of {len(source.indices)} records")


def _duplicates(source: OpenedSource, used: Sequence[UsedRecord]) -> Iterator[Found]:
    first: dict[str, UsedRecord] = {}
    for record in used:
        other = first.setdefault(record.id, record)
        if other is not record:
            shares_boxes = source.table is not None and record.images and record.images != other.images
            kind = "duplicate_id_boxes" if shares_boxes else "duplicate_id"
            yield Found(kind, record.id, record.row, f"first in record {other.row}")


def _hash_evaluation(evaluation: Sequence[EvalPicture], first: OpenedSource, options: CheckOptions) -> dict[str, str]:
    names: dict[str, str] = {}
    jobs = split(len(evaluation), _PICTURES_A_JOB)
    for _, (found_names, found) in _run(hash_eval_pictures, jobs, evaluation, "evaluation", options):
        names = {**found_names, **names}
        first.findings.extend(found)
    return names


def _check_pictures(
    sources: Sequence[OpenedSource], options: CheckOptions, has_evaluation: bool
) -> dict[tuple[str, int | None], PictureFacts]:
    """Facts of every picture file, by path and limit."""
    wanted = {
        (source.path_of(name), source.faults.max_pixels): None
        for source in sources
        if source.has_folder
        for record in source.used
        for name in record.images
        if not source.is_outside(name)
    }
    needs_content = has_evaluation or any(source.table and source.table.has_pictures for source in sources)
    check = PictureCheck(read_cache(options.cache) if options.cache else {}, list(wanted), needs_content)
    facts: dict[tuple[str, int | None], PictureFacts] = {}
    for _, results in _run(check_pictures, split(len(wanted), _PICTURES_A_JOB), check, "pictures", options):
        if options.cache:
            append_cache(options.cache, (cached for is_new, cached in results if is_new))
        facts.update({(cached.path, cached.max_pixels): cached.facts for _, cached in results})
    return facts


def _check_links(check: LinkCheck, options: CheckOptions) -> list[list[LinkResult]]:
    sources = check.sources
    links: list[list[LinkResult]] = [[] for _ in sources]
    jobs = _jobs_of([len(source.used) for source in sources])
    for (number, _, _), result in _run(check_links, jobs, check, "boxes", options):
        sources[number].findings.extend(result.found)
        result.found.clear()
        links[number].append(result)
    if options.limit is None:
        _find_unused_boxes(sources)
    return links


def _find_unused_boxes(sources: Sequence[OpenedSource]) -> None:
    """Several sources may share a box file; it is told of once, with the first of them."""
    by_file: dict[str, list[OpenedSource]] = defaultdict(list)
    for source in sources:
        by_file[str(source.arguments["box_path"])].append(source)
    for group in by_file.values():
        records = (record for source in group for record in source.used)
        keys = {key for record in records for key in record.box_keys}
        if group[0].table is not None and keys and len(group[0].records):
            unused = [key for key in group[0].table.keys() if key not in keys]
            if unused:
                detail = f"such as {', '.join(map(repr, unused[:3]))}"
                group[0].tell("unused_boxes", detail=detail, count=len(unused))


def _tokens(model: Any) -> TokenCount | None:
    """Tokens of a picture in the config's model, where its sizes are known."""
    try:
        return None if model is None else MODELS.build({"type": "mg_llava.count_tokens", "model": model})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the model is for others to check
        return None


def _sizes_of_llm(model: Any) -> LLMSizes:
    """Numbers of the config's LLM, where its files are here."""
    try:
        path = ((model or {}).get("llm") or {}).get("path")
        content = load_object(Path(str(path)) / "config.json")
        values = [content.get(name) for name in ("max_position_embeddings", "vocab_size")]
    except (TypeError, OSError, ValueError, AttributeError):
        return LLMSizes()
    return LLMSizes(*(value if isinstance(value, int) else None for value in values))
