"""Two stacks from one source: what transformers 4.48 and 5, torch 2.5 and newer ones call differently.

No other file asks for versions. Importing this imports nothing of them, because torch itself does it: an entry point
of the group ``torch.backends`` calls :func:`await_xtuner` at the end of ``import torch``. So the command ``xtuner``
works as it is installed, in its own process and in those that it starts.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GONE = {"transformers.utils": ("is_safetensors_available",)}
"""Names that XTuner 0.2.0 imports and transformers 5 has no more; what each says is so: its answer is always yes."""
ABSENT = {"deepspeed.runtime.fp16.onebit": ("OnebitAdam", "OnebitLamb", "ZeroOneAdam")}
"""Modules that newer releases of DeepSpeed have no more, and classes that mmengine imports from them to register."""


# -- XTuner -----------------------------------------------------------------------------------------------------------


def await_xtuner() -> None:
    """Prepare for XTuner when it is imported, before it imports what is gone; costs nothing where it is not."""
    if not any(isinstance(finder, _XTunerFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _XTunerFinder())


class _XTunerFinder(MetaPathFinder):
    """Finds nothing itself; acts before the module is found that all of XTuner imports, and goes."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """See :class:`MetaPathFinder`."""
        if fullname == "xtuner.utils":
            sys.meta_path.remove(self)
            sys.meta_path.append(_AbsentFinder())  # asked last, where a module is really not there
            complete_transformers()


def complete_transformers() -> None:
    """Add the names that are gone; without transformers 5, or without transformers, nothing."""
    for module, names in GONE.items():
        try:
            home = importlib.import_module(module)
        except ImportError:  # XTuner says so better
            return
        for name in names:
            if not hasattr(home, name):
                setattr(home, name, _always)


def _always() -> bool:
    return True


class _AbsentFinder(MetaPathFinder, Loader):
    """Makes the modules of ``ABSENT``, with classes that cannot be built."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See :class:`MetaPathFinder`."""
        return ModuleSpec(fullname, self) if fullname in ABSENT else None

    def exec_module(self, module: ModuleType) -> None:
        """See :class:`Loader`."""
        for name in ABSENT[module.__name__]:
            setattr(module, name, type(name, (_Absent,), {"__module__": module.__name__}))


class _Absent:
    def __init__(self, *_: Any, **__: Any) -> None:
        name, package = type(self).__name__, type(self).__module__.partition(".")[0]
        raise ImportError(f"the installed {package} has no {name} any more; choose another one")


# -- transformers -----------------------------------------------------------------------------------------------------


def no_init_weights() -> AbstractContextManager[None]:
    """Inside, models of transformers are built without drawing their weights."""
    home = _first("transformers.initialization", "transformers.modeling_utils")
    return home.no_init_weights()


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Inside, transformers splits nothing for ZeRO-3, which it would do to all that it builds.

    Detectors copy their norms while they are built, and would copy empty ones; on the meta device there is nothing to
    split. What is made is split with all the rest when the training begins.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = None if reference is None else reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def vision_network(model: Any) -> Any:
    """What has the embeddings and the encoder of a CLIP or SigLIP vision model: since transformers 5 the model."""
    return getattr(model, "vision_model", model)


def take_masks_as_given() -> None:
    """Keep transformers 5 from looking for packed samples where a decoder is called without a mask.

    It takes positions that begin again for another sample, so that padding would cost a mask for each row, and it asks
    the device. Rows that are packed here come with a mask of their own, or attention is told where they begin.
    """
    if importlib.util.find_spec("transformers.masking_utils") is not None:
        importlib.import_module("transformers.masking_utils").find_packed_sequence_indices = _no_packing  # type: ignore[attr-defined]


def _no_packing(_: Any) -> None:
    return None


def _first(*modules: str) -> Any:
    """The first of some modules that is there."""
    for name in modules[:-1]:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    return importlib.import_module(modules[-1])


def auto_models() -> list[Any]:
    """The Auto classes that load models which see pictures and write text; transformers 5 has one less."""
    import transformers

    names = ("AutoModel", "AutoModelForVision2Seq", "AutoModelForImageTextToText")
    return [getattr(transformers, name) for name in names if hasattr(transformers, name)]


@functools.cache
def dtype_name() -> str:
    """The argument of a model, and the value of its config, that says the dtype of the weights."""
    from transformers import PretrainedConfig

    return "dtype" if hasattr(PretrainedConfig, "dtype") else "torch_dtype"


def cache_name(model: Any) -> str:
    """The argument of a model, and the value that it gives, in which keys and values of earlier steps are."""
    kind: Any = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return _cache_name(kind)


@functools.cache  # it is asked for every token
def _cache_name(kind: Any) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def cached_layers(cache: Any) -> "list[tuple[Tensor, Tensor]]":
    """Keys and values of each layer of a ``DynamicCache``."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(cache)


def tied_keys(llm: Any, prefix: str) -> Any:
    """``_tied_weights_keys`` of a model that holds an LLM under a prefix: a list, since transformers 5 a dict."""
    keys = llm._tied_weights_keys or ()
    if isinstance(keys, Mapping):
        return {prefix + name: prefix + source for name, source in keys.items()}
    return [prefix + name for name in keys]


def names_part_classes(processor: Any) -> Any:
    """Decorate a processor: the classes of its parts have to be named before transformers 5."""
    if not hasattr(processor, "get_attributes"):
        processor.image_processor_class, processor.tokenizer_class = "AutoImageProcessor", "AutoTokenizer"
    return processor


def own_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """For each name in a folder of transformers that of the model's tensor; since transformers 5 they may differ.

    Raises:
        ValueError: A tensor of the model is made of several of the folder's, or of a part of one.
    """
    if importlib.util.find_spec("transformers.conversion_mapping") is None:
        return {name: name for name in stored}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    own, prefix, found = model.state_dict(keep_vars=True), model.base_model_prefix, {}
    for name in stored:
        found[name], converted = rename_source_key(name, renamings, converters, prefix, own)
        if converted is not None:
            raise ValueError(f"{name} of a {type(model).__name__} is stored in another layout than transformers has")
    return found


def stored_names(model: Any) -> dict[str, str]:
    """For each tensor of a model its name in a folder of transformers: the inverse of :func:`own_names`."""
    own = list(model.state_dict())
    if importlib.util.find_spec("transformers.core_model_loading") is None:
        return {name: name for name in own}
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    marks = {name: torch.empty(0) for name in own}
    found = {id(mark): name for name, mark in revert_weight_conversion(model, marks).items()}
    return {name: found[id(mark)] for name, mark in marks.items()}


def picture_processor(name: str, path: str) -> Any:
    """A picture processor of transformers that resizes with PIL, as networks were trained; OWLv2's pads with gray.

    Transformers 5 prefers others, which resize and blur in another way, and pads with black.
    """
    import transformers

    processor = getattr(transformers, f"{name}Pil", getattr(transformers, name)).from_pretrained(path)
    if name.startswith("Owlv2") and "constant_value" in inspect.signature(processor.pad).parameters:
        processor.pad = functools.partial(processor.pad, constant_value=0.5)
    return processor


def read_attention(given: Any) -> "Tensor":
    """What an attention of a Q-Former gives: the first of several things, or all of it since transformers 5."""
    return given[0] if isinstance(given, tuple) else given


def as_attention_gives(states: "Tensor") -> Any:
    """What a layer of a Q-Former takes from an attention."""
    return states if _attends_alone() else (states, None)


@functools.cache  # it is asked in every step
def _attends_alone() -> bool:
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerEncoder

    return "head_mask" not in inspect.signature(Blip2QFormerEncoder.forward).parameters
