"""Everything that a Hugging Face folder says about a model beside its weights."""

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mg_llava.hf.portable import portable_config
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

_PRIVATE = ("_name_or_path", "_attn_implementation_autoset")
"""Never written: a path of this machine, and a mark that makes transformers fall back to eager attention."""
_BEFORE = (
    *("vision_config", "low_resolution_config", "high_resolution_config"),
    *("fusion_config", "box_projector_config", "projector_config"),
)
"""Where parts were described before there was one table of them."""
_OF_THE_WHOLE = ("torch_dtype", "dtype", "transformers_version")


class MGLLaVAConfig(PretrainedConfig):
    """Architecture of a model and of all its parts; no part is read from another folder.

    Args:
        text_config: Config of the LLM, of any architecture that transformers knows.
        system: Registered name of the system's class.
        parts: For each part but the LLM, by its name in a training config: the spec of an encoder, or the config of a
            connector, with ``type``.
        picture_config: Arguments of ``PictureProcessor`` that the model was trained with.
        template_config: The prompt template that the model was trained with.
        image_token_index: Id that stands for a picture.
        ignore_index: Label of positions without loss.
        **kwargs: As for ``PretrainedConfig``; ``vision_config``, ``fusion_config`` and the like, with which parts
            were described before, are understood.
    """

    model_type = "mg_llava"
    is_composition = True
    sub_configs = {"text_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        system: str = "MGLLaVA",
        parts: dict[str, dict[str, Any]] | None = None,
        picture_config: dict[str, Any] | None = None,
        template_config: dict[str, Any] | None = None,
        image_token_index: int = IMAGE_TOKEN_INDEX,
        ignore_index: int = IGNORE_INDEX,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(text_config, "llama", "text_config")
        self.system = system
        if parts is None and any(name in kwargs for name in _BEFORE):
            from mg_llava.hf.before import read_parts

            parts = read_parts({name: kwargs.pop(name, None) for name in _BEFORE})
        self.parts = copy.deepcopy(parts or {})
        self.picture_config = picture_config
        self.template_config = template_config
        self.image_token_index = image_token_index
        self.ignore_index = ignore_index
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Of the LLM; transformers looks for it here to score what was generated."""
        return self.text_config.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """All attributes as plain values, without what belongs to this machine."""
        return _without(super().to_dict(), _PRIVATE)

    def to_diff_dict(self) -> dict[str, Any]:
        """Content of ``config.json``: of each part the values that differ from transformers' defaults."""
        output = super().to_diff_dict()
        for name in self.sub_configs:
            output[name] = _without(getattr(self, name).to_diff_dict(), _OF_THE_WHOLE)
        return portable_config(_without(output, _PRIVATE))


def _sub_config(config: dict[str, Any] | PretrainedConfig | None, default: str, name: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = copy.deepcopy(config or {})
    model_type = values.pop("model_type", default)
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise ValueError(
            f"{name}: this version of transformers knows no model type {model_type!r}; install the version that the "
            "model was saved with (transformers_version in config.json)"
        ) from error


def _without(values: dict[str, Any], unwanted: tuple[str, ...]) -> dict[str, Any]:
    """Nested dicts without some keys."""
    return {
        key: _without(value, unwanted) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in unwanted
    }
