"""A system's parts: building them, training what a stage says, saving what trains, loading what was saved."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mg_llava.models.compilation import compile_parts
from mg_llava.models.interfaces import Part
from mg_llava.models.packing import check_packing
from mg_llava.models.parts import PartOrConfig, build_part, raise_together, size_faults
from mg_llava.models.stages import set_trained
from mg_llava.models.vision import CachedFeatures
from mg_llava.models.weights.loading import on_meta
from mg_llava.models.weights.parts import load_parts, needed_keys, saved_parts, saved_state_dict, trained_keys
from mg_llava.registry import EXPORTERS

_Module = TypeVar("_Module", bound=nn.Module)

PROMPTS = Part("adapter", "prompts", "connector")
"""Row of the table of a system whose LLM may have prompts inside its layers, such as ``GatedPrompts``."""

LANGUAGE_LOSS = {"type": "mg_llava.LanguageLoss"}
"""The default loss of an LLM: the next token."""

_OF_LLM = ("out_channels", "prompts", "hidden_size")
"""Sizes that an LLM decides; before there is one, and in systems without, others stand in for them."""

NOTHING_LEARNED = (
    "losses is empty, so that there is nothing to train on; remove it for the language loss alone, or list losses "
    f"such as {LANGUAGE_LOSS}"
)
"""What a training without losses is answered; systems without any are for what is computed before one."""


class Assembly(BaseModel):
    """The parts of a system under their keys; base of :class:`mg_llava.models.system.System`.

    Args:
        losses: What is learned, as configs of losses; their values are summed.
        packing: Length of the rows into which the samples of a batch are packed in training, without padding between
            them; None for a row for each sample.
        compile_vision: Compile encoders and fusion with torch.compile.
        trains: Names of the parts that are trained; see :func:`mg_llava.models.stages.set_trained`.
        pretrained_pth: Checkpoint to start from; it must hold the connectors, and may hold the LLM.
        fresh: Names of parts that start anew beside ``pretrained_pth``, which must not hold them.
        data_preprocessor: As in mmengine; moves a batch to the device, by default without waiting for it.
    """

    parts: ClassVar[tuple[Part, ...]] = ()
    """The table of parts: nothing else lists them."""

    left_behind: ClassVar[tuple[str, ...]] = ()
    """Keys of parts of an earlier stage whose tensors this one does not take over."""

    training_only: ClassVar[tuple[str, ...]] = ("losses", "packing", "compile_vision")
    """Arguments that change how a system is trained, and nothing of what it answers."""

    llm: Any
    adapter: Any

    def __init__(
        self,
        losses: Sequence[Mapping[str, Any]] | None = None,
        packing: int | None = None,
        compile_vision: bool = False,
        trains: Sequence[str] | None = None,
        pretrained_pth: str | None = None,
        fresh: Sequence[str] = (),
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        # batches lie in pinned memory: while they are copied the next kernels are queued
        super().__init__(data_preprocessor or dict(type="mg_llava.JoinedTransport"))
        if packing is not None and packing < 1:
            raise ValueError(f"packing is {packing}; it must be the length of a row, or None")
        if unknown := sorted(set(fresh) - {part.config for part in self.parts}):
            names = ", ".join(part.config for part in self.parts)
            raise ValueError(f"fresh names {', '.join(unknown)}; the parts of {type(self).__name__} are {names}")
        if isinstance(losses, Mapping):
            raise ValueError(f"losses is {losses!r}; a list of losses is needed")
        self.losses = [build_part(dict(loss)) for loss in ([LANGUAGE_LOSS] if losses is None else losses)]
        self.packing = packing
        self._options = (compile_vision, trains, pretrained_pth, fresh)
        self.monitor: dict[str, Tensor] = {}
        """Detached scalars of the last training step, such as mean norms of tokens."""
        self.cached = CachedFeatures(self)

    def add(self, name: str, part: PartOrConfig | None, **sizes: Any) -> Any:
        """Build a part and keep it under its key.

        Args:
            name: Its name in the config.
            part: Built, its config, or None.
            **sizes: Arguments that follow from other parts.

        Raises:
            ValueError: It states other sizes, or cannot be built.
        """
        has_llm = getattr(self, "llm", None) is not None
        known = {size: value for size, value in sizes.items() if has_llm or size not in _OF_LLM}
        raise_together(size_faults(name, part, known))
        key = next(entry.key for entry in self.parts if entry.config == name)
        module = build_part(part, **sizes)
        setattr(self, key, module)
        return module

    def add_llm(self, llm: PartOrConfig | None, prompts: PartOrConfig | None = None) -> int:
        """Build the LLM, and the prompts inside its layers; give its hidden size D, 1 without one."""
        self.llm = build_part(llm)
        self.adapter = None
        if self.llm is None:
            return 1
        self.adapter = build_part(prompts, llm=self.llm)
        if self.packing is not None:
            check_packing(self.llm)
        for loss in () if on_meta() else self.losses:
            loss.check(self.llm)
        return self.llm.get_input_embeddings().embedding_dim

    def complete(self) -> None:
        """Say what is trained, compile, and load the checkpoint to start from; the end of every constructor."""
        compile_vision, trains, pretrained_pth, fresh = self._options
        set_trained(self, trains)
        if compile_vision:
            compile_parts(
                *(module for part, module in self.named_parts() if part.role == "encoder" or part.config == "fusion")
            )
        self.register_load_state_dict_post_hook(_forget_frozen)
        if pretrained_pth is not None and not next(self.parameters()).is_meta:
            self.load_pretrained(pretrained_pth, fresh=fresh)

    def learned(self) -> list[Any]:
        """The losses of a training.

        Raises:
            ValueError: There is none.
        """
        if not self.losses:
            raise ValueError(NOTHING_LEARNED)
        return self.losses

    def named_parts(self) -> Iterator[tuple[Part, nn.Module]]:
        """The parts that are there."""
        for part in self.parts:
            module = getattr(self, part.key, None)
            if module is not None:
                yield part, module

    def part_of(self, kind: type[_Module]) -> _Module | None:
        """The first part of a kind, such as ``Fusion``; None without one."""
        return next((module for _, module in self.named_parts() if isinstance(module, kind)), None)

    def init_weights(self) -> None:
        """Change nothing: parts are initialized where they are built, and loaded weights must stay.

        mmengine's runners call this before training. Its own version asks every part in turn, which reaches
        transformers' ``init_weights`` through PEFT and fills the adapters with random numbers.
        """

    @property
    def connector(self) -> nn.Parameter:
        """A parameter of a connector, else of another part: batches go where it is, and tokens have its dtype."""
        parts = sorted(self.named_parts(), key=lambda entry: entry[0].role != "connector")
        return next(parameter for _, module in parts for parameter in module.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the connectors, where batches go."""
        return self.connector.device

    @property
    def canvas_size(self) -> int:
        """S: the largest view of an encoder."""
        return max(module.spec.image_size for part, module in self.named_parts() if part.role == "encoder")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors that a checkpoint of this stage holds; see :mod:`mg_llava.models.weights.parts`."""
        state = super().state_dict(*args, **kwargs)
        return state if kwargs.get("prefix") or len(args) > 1 else saved_state_dict(self, state)

    def to_hf(self, cfg: Any, save_dir: str, fp32: bool = False, save_format: str = "xtuner", **kwargs: Any) -> None:
        """Called by ``xtuner convert pth_to_hf``; see :func:`mg_llava.conversion.pth_to_hf.export_model`."""
        # XTuner asks the model, which may not import the converter: that is a room above
        EXPORTERS.get("export_model")(self, cfg, save_dir, fp32, save_format, **kwargs)

    def load_pretrained(self, path: str, whole: bool = False, fresh: Sequence[str] = ()) -> None:
        """Load a checkpoint of this project or of the reference.

        Args:
            path: mmengine ``.pth``, DeepSpeed folder, safetensors file, or a work directory with one of them.
            whole: Whether everything that this model saves must be in it (to evaluate), or only the connectors (to
                start stage 2 from stage 1).
            fresh: Names of parts that start anew; the checkpoint must not hold them.

        Raises:
            FileNotFoundError: If there is no checkpoint at ``path``.
            ValueError: If it is of another kind or does not fit, or ``fresh`` names no part.
        """
        from mg_llava.models.weights.checkpoint import load_training_checkpoint

        keys = {part.config: part.key for part, _ in self.named_parts()}
        if absent := sorted(set(fresh) - set(keys)):
            raise ValueError(f"fresh names {', '.join(absent)}; the parts of this system are {', '.join(keys)}")
        connectors = {part.key for part, _ in self.named_parts() if part.role == "connector"}
        # a part without parameters is in no checkpoint
        needed = None if whole else connectors & {name.split(".", 1)[0] for name, _ in self.named_parameters()}
        state = load_training_checkpoint(path, dtype=None)
        load_parts(self, state, path, needed, fresh=[keys[name] for name in fresh])
        for name in fresh:
            print_log(f"{name} starts anew: {path} does not hold it", logger="current")


def _forget_frozen(model: nn.Module, incompatible: Any) -> None:
    """Keep weights that come from their own folders, not from checkpoints, out of the list of missing keys."""
    needed = set(needed_keys(model, trained_keys(model), saved_parts(model)))
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key in needed]
