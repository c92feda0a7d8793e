"""Reasons why a run cannot start: files that are not there, and options that do not go together."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mg_llava.data.config import find_dataset, find_model, trained_length, walk_sources
from mg_llava.data.pictures.places import is_stored
from mg_llava.data.records.open import open_records
from mg_llava.data.settings import Draw, build_group, build_tokens
from mg_llava.data.text.conversation import Template
from mg_llava.models.assembly import NOTHING_LEARNED
from mg_llava.models.parts import kind_of
from mg_llava.models.positions import has_further_positions
from mg_llava.models.vision import refuse_features
from mg_llava.planning.gpus import GPU
from mg_llava.planning.options import unknown_options
from mg_llava.planning.skeleton import Skeleton

_WEIGHTS = ("*.safetensors", "*.bin")
_HALF = ("bfloat16", "float16")
_FEWER = "take fewer frames or boxes, pool frames (frame_pooler), or lower context_length"


def find_missing(config: Any) -> list[dict[str, str]]:
    """Files and folders that the run would read and that are not here; each with ``what``, ``path`` and ``note``."""
    found: list[dict[str, str]] = []
    model = find_model(config)
    for _, part, role in kind_of(model).parts:
        path = str((model.get(part) or {}).get("path") or "") if role != "connector" else ""
        note = _missing_weights(path) if path else ""
        if note:
            found.append({"what": part, "path": path, "note": note})
    start = model.get("pretrained_pth")
    if start and not Path(start).exists():
        found.append({"what": "pretrained_pth", "path": start, "note": "train stage 1 first, or give its checkpoint"})
    for source in walk_sources(find_dataset(config)):
        for key in ("data_path", "image_folder", "box_path"):
            if isinstance(source.get(key), str) and not is_stored(source[key]) and not Path(source[key]).exists():
                entry = {"what": key, "path": source[key], "note": "see data/README.md, or change data_root"}
                found += [entry] if entry not in found else []
    return found


def _missing_weights(path: str) -> str:
    """Why the weights of a folder or hub name cannot be read; empty where they can."""
    folder = Path(path)
    if folder.is_dir():
        there = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
        return "" if there else f"the folder has no weights ({', '.join(_WEIGHTS)})"
    if folder.exists() or "/" not in path:
        return ""
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        return "the folder does not exist"
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = any(repo.repo_id == path and repo.size_on_disk > 1e6 for repo in scan_cache_dir().repos)
    except CacheNotFound:
        cached = False
    return "" if cached else "not in the hub's cache; the first run downloads it"


def count_samples(config: Any) -> tuple[int | None, str]:
    """Samples of an epoch, and where the number comes from; None where nothing says it."""
    try:
        return round(sum(records * repeat for records, repeat in drawn_records(config))), "counted"
    except FileNotFoundError as error:
        published = config.get("published_samples")
        return (int(published), "as published") if published else (None, str(error))


def drawn_records(config: Any) -> Iterator[tuple[int, float]]:
    """Records of each source that an epoch draws from, and how often it draws each.

    Raises:
        FileNotFoundError: The records of a source are not here.
    """
    for source in walk_sources(find_dataset(config)):
        path = source.get("data_path")
        if not path or not (is_stored(path) or Path(path).is_file()):
            raise FileNotFoundError(f"{path} does not exist")
        count = len(open_records(path))
        drawn: Draw = build_group("draw", source.get("draw"))
        yield min(count, drawn.max_dataset_length or count), drawn.repeat


def find_conflicts(config: Any, skeleton: Skeleton | None, gpu: GPU, deepspeed: str | None) -> list[str]:
    """Options that cannot work together, each with what to do.

    Args:
        config: The training config.
        skeleton: Its model, where it could be built.
        gpu: What it shall run on.
        deepspeed: The setting asked for, if any.
    """
    found = [*unknown_options(config), *_about_training(config, gpu, deepspeed), *_about_text(config)]
    return found if skeleton is None else [*found, *_about_sizes(config, skeleton), *_about_caches(config, skeleton)]


def _about_training(config: Any, gpu: GPU, deepspeed: str | None) -> Iterator[str]:
    wrapper, loader = config.optim_wrapper, config.train_dataloader
    if config.model.get("losses") is not None and not config.model.losses:
        yield NOTHING_LEARNED
    precision = wrapper.get("dtype", "float32")
    if precision == "bfloat16" and not gpu.bfloat16:
        yield f"precision='bfloat16', but {gpu.name} does not compute in it; use precision='float16'"
    if deepspeed not in (None, "none") and precision not in _HALF:
        yield f"{deepspeed} trains in 16 bits, but precision is {precision!r}; use precision='bfloat16'"
    if (config.model.get("llm") or {}).get("tuning") == "qlora" and "zero3" in str(deepspeed):
        yield f"{deepspeed} cannot split 4-bit weights; use deepspeed_zero2 with tuning='qlora', or tuning='lora'"
    together = loader.batch_size * wrapper.get("accumulative_counts", 1)
    grouped = loader.sampler.get("per_device_batch_size")
    if grouped is not None and grouped != together:
        yield (
            f"the sampler groups {grouped} samples, but a step of one device has {together} (batch_size times "
            "accumulative_counts); change sampler.per_device_batch_size with them"
        )


def _about_text(config: Any) -> Iterator[str]:
    dataset = config.train_dataloader.dataset
    for name in {str(config.prompt_template), str(dataset.get("template", config.prompt_template))}:
        try:
            Template.build(name)
        except ValueError as error:
            yield str(error)
    llm, tokenizer = (config.model.get("llm") or {}).get("path"), dataset.get("tokenizer")
    other = tokenizer.get("pretrained_model_name_or_path") if isinstance(tokenizer, Mapping) else None
    if None not in (llm, other) and other != llm:
        yield f"the LLM is {llm}, but texts are tokenized for {other}; change llm_name_or_path, not one of the two"


def _about_sizes(config: Any, skeleton: Skeleton) -> Iterator[str]:
    model, dataset = skeleton.model, config.train_dataloader.dataset
    tokens = model.tokens_of(1, 0)
    stated = build_tokens(dataset.get("tokens"))(1, 0)
    if dataset.get("tokens") and stated != tokens:
        yield (
            f"the data counts {stated} tokens for a picture, but the model gives {tokens}; make the model in "
            "train_dataloader.dataset.tokens that of the config"
        )
    context = (dataset.get("budget") or {}).get("context_length")
    positions = None if model.llm is None else getattr(model.llm.config, "max_position_embeddings", None)
    if context and positions and context > positions and not has_further_positions(model.llm.config):
        yield f"context_length is {context}, but the LLM has {positions} positions; {_FEWER}, or take another LLM"
    if context and context <= tokens:
        yield f"context_length {context} leaves no room for text beside {tokens} visual tokens; raise context_length"
    for processor in (config.get("picture_processor"), dataset.get("picture_processor")):
        size = processor.get("image_size") if isinstance(processor, Mapping) else None
        if size is not None and size != model.canvas_size:
            yield f"pictures are made for {size} px, but the model reads {model.canvas_size}; make image_size equal"
            return


def find_cautions(config: Any, skeleton: Skeleton) -> list[str]:
    """What works, but not by itself, with what to see to."""
    length, llm = trained_length(config), skeleton.model.llm
    positions = None if llm is None else getattr(llm.config, "max_position_embeddings", None)
    if not (length and positions and length > positions and has_further_positions(llm.config)):
        return []
    return [
        f"context_length is {length}, but the LLM was made for {positions} positions: it learns the others in this "
        f"training, and does not where it is frozen; to need none of them {_FEWER}"
    ]


def _about_caches(config: Any, skeleton: Skeleton) -> Iterator[str]:
    sources = walk_sources(find_dataset(config))
    if any((source.get("caches") or {}).get("feature_cache") for source in sources):
        yield from (f"{reason}; set feature_cache=None" for reason in refuse_features(skeleton.model))
