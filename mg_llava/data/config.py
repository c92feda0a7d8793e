"""Data in configs: the sources that a training reads, and from their settings to paths, transforms, open box files."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mg_llava.data.boxes.store import BadRecord, BoxStore, MissingBox, open_box_store
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.places import join_path
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.settings import merge_settings
from mg_llava.registry import DATASETS, TRANSFORMS

_PATHS = ("data_path", "image_folder", "box_path")
MIXED = "sources"
"""Key of a mixture's sources; its other settings are defaults of theirs."""


class ConfigError(ValueError):
    """A config that cannot be read, or without a model or a training set that could."""


def load_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """A config file, whose code is run, with changes of its values.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path} does not exist; give the .py file of a training")
    try:
        config = Config.fromfile(str(path))
        config.merge_from_dict(dict(changes or {}))
    except Exception as error:  # whatever the code of a config raises
        fault = f"{type(error).__name__}: {error}"
        raise ConfigError(f"config {path} cannot be read ({fault}); give the .py file of a training") from error
    return config


def build_dataset(settings: Mapping[str, Any]) -> Any:
    """The training set of its settings.

    Raises:
        ConfigError: Its type is unknown, or a setting is not known or missing; other errors as of its class.
    """
    try:
        return DATASETS.build(dict(settings))
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"train_dataloader.dataset cannot be built: {error.args[0] if error.args else error}"
        ) from error


def resolve_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a source with ``data_root`` worked into the three paths that are relative to it."""
    root = settings.get("data_root")
    paths = {name: settings[name] for name in _PATHS if isinstance(settings.get(name), str | Path)}
    return {**settings, **{name: below(root, path) for name, path in paths.items()}, "data_root": None}


def below(root: str | Path | None, path: Any) -> Any:
    """A path of a source that is relative to its ``data_root``; what is no path stays as it is."""
    if not isinstance(path, str | Path):
        return path
    return join_path(root, path)


def build_transform(spec: Any) -> Any:
    """A transform from its dict; anything else is returned as it is."""
    return TRANSFORMS.build(spec) if isinstance(spec, dict) else spec


def open_boxes(
    spec: str | Path | BoxStore | None,
    missing: MissingBox,
    bad: BadRecord = "error",
    proposer: Any = None,
    processor: PictureProcessor | None = None,
) -> BoxStore | None:
    """Open the box file of a source, whose boxes are in the frame that ``processor`` brings pictures into."""
    if spec is None or isinstance(spec, BoxStore):
        return spec
    to_frame = None
    if processor is not None:
        to_frame = partial(to_rgb, mode=processor.mode, apply_exif=processor.apply_exif)
    return open_box_store(spec, missing=missing, bad=bad, proposer=proposer, to_frame=to_frame)


def find_model(config: Any) -> Any:
    """The settings of a config's model.

    Raises:
        ConfigError: There are none.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise ConfigError(f"{config.filename} has no model; give the config of a training")
    return model


def find_dataset(config: Any) -> Mapping[str, Any]:
    """The settings of a config's training set as plain values.

    Raises:
        ConfigError: There is none.
    """
    plain = config.to_dict()
    dataset = (plain.get("train_dataloader") or {}).get("dataset")
    if not isinstance(dataset, Mapping):
        raise ConfigError(f"{config.filename} has no train_dataloader.dataset; give the config of a training")
    return dataset


def trained_length(config: Any) -> int | None:
    """Most tokens of the rows that a config trains with, its ``context_length``; None where it does not say."""
    found = config.get("train_dataloader")
    for key in ("dataset", "budget", "context_length"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else None


def walk_sources(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of each single source of a data set, of mixtures and concatenations too."""
    if "data_path" in dataset:
        yield resolve_paths(dataset)
    elif isinstance(dataset.get(MIXED), Sequence):
        shared = {name: value for name, value in dataset.items() if name not in (MIXED, "type")}
        for part in dataset[MIXED]:
            yield from walk_sources(merge_settings(shared, part))
    elif isinstance(dataset.get("datasets"), Sequence):
        for part in dataset["datasets"]:
            yield from walk_sources(part)
    elif isinstance(dataset.get("dataset"), Mapping):
        yield from walk_sources(dataset["dataset"])
    else:
        yield dataset
