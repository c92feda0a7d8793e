"""The model as transformers' users know models: ``from_pretrained``, ``generate``, ``save_pretrained``.

Shapes: B rows, T text ids (a picture counts one), N pictures, S side of the canvas in pixels, L length after the
tokens of pictures and boxes have come in, n_i boxes of picture i.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mg_llava.batch import canvas_flags
from mg_llava.compat import cache_name, tied_keys
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.inputs import checked_boxes, is_filled, with_prompt
from mg_llava.hf.parts import build_system, restore_buffers, spare_vision_parts
from mg_llava.models.interfaces import ObjectReader
from mg_llava.models.losses.language import token_loss
from mg_llava.models.splice import Spliced
from mg_llava.models.weights.guard import safe_torch_load
from mg_llava.models.weights.loading import on_meta
from mg_llava.tokens import IGNORE_INDEX

_Pictures = tuple[Tensor | None, Sequence[Tensor] | None, Tensor | None, Sequence[str] | None]
"""``pixel_values``, ``boxes``, ``frames`` and ``questions`` of a forward pass."""


class MGLLaVAForConditionalGeneration(PreTrainedModel, GenerationMixin):
    r"""A multimodal LLM that sees a picture at low resolution, at high resolution, and object by object.

    Examples:
        >>> import mg_llava.hf
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> model = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype="auto", device_map="auto")
        >>> processor = AutoProcessor.from_pretrained(folder)
        >>> inputs = processor("USER: <image>\nWhat is this? ASSISTANT:", image, boxes=[[10, 20, 30, 40]])
        >>> output = model.generate(**inputs.to(model.device), max_new_tokens=100)
        >>> processor.decode_answers(output, inputs["input_ids"])
    """

    config_class = MGLLaVAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = "past_key_values"
    _supports_cache_class = True
    _supports_flash_attn_2 = True
    _supports_sdpa = True

    def __init__(self, config: MGLLaVAConfig) -> None:
        super().__init__(config)
        self.is_from_meta = on_meta()  # its buffers have no values then
        llm = AutoModelForCausalLM.from_config(config.text_config)
        self.model = build_system(config, llm)
        own = [type(module).__name__ for part, module in self.model.named_parts() if part.role != "llm"]
        self._no_split_modules = [*own, *(llm._no_split_modules or ())]
        # Everything is in the folder: keys that are missing in it are none to forget about.
        self.model._load_state_dict_post_hooks.clear()
        for kind in ("_supports_quantized_cache", "_supports_static_cache"):  # asked in some releases of transformers
            setattr(self, kind, getattr(llm, kind, True))
        self._tied_weights_keys = tied_keys(llm, "model.llm.")
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, but a folder that lacks weights is refused.

        With ``load_in_4bit``, ``load_in_8bit`` or a ``BitsAndBytesConfig`` the LLM alone is quantized.

        Raises:
            ValueError: Weights are missing in the folder; transformers would fill in random ones.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs = {"ignore_mismatched_sizes": True, **spare_vision_parts(kwargs), "output_loading_info": True}
        with safe_torch_load():
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if wrong := sorted(info["mismatched_keys"]):
            name, found, expected = wrong[0]
            raise RuntimeError(
                f"{pretrained_model_name_or_path}: {name} is {tuple(found)}, expected {tuple(expected)}"
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} weights of the model, e.g. {missing[0]}; the "
                "folder is incomplete or of another model: convert or copy it again"
            )
        if model.is_from_meta:
            restore_buffers(model.model, model.config)
        for part, module in model.model.named_parts():
            if part.role == "encoder":
                module.settle()
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.save_pretrained``; code that came out of a folder goes into the next one too."""
        if type(self).__module__.startswith("transformers_modules."):
            type(self).register_for_auto_class("AutoModelForImageTextToText")
        elif getattr(self.config, "auto_map", None) is not None:
            del self.config.auto_map  # it names files that this class does not bring along
        return super().save_pretrained(save_directory, *args, **kwargs)

    @staticmethod
    def _fix_state_dict_key_on_load(key: str) -> Any:
        """Leave names alone: transformers would read ConvNeXt's ``gamma`` as an old spelling of ``weight``."""
        fixed = PreTrainedModel._fix_state_dict_key_on_load(key)
        return key if isinstance(fixed, str) else (key, False)  # newer releases say whether they changed it

    # -- what transformers asks a model for -----------------------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: parts are initialized where they are built, and a folder that lacks their weights is refused."""

    def get_input_embeddings(self) -> nn.Module:
        """Word embeddings of the LLM."""
        return self.model.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings of the LLM."""
        self.model.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Output layer of the LLM."""
        return self.model.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output layer of the LLM."""
        self.model.llm.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The LLM without its output layer."""
        return self.model.llm.get_decoder()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the output layer to the word embeddings where the LLM does; with arguments as while a folder is read."""
        tie = super().tie_weights if args or kwargs else self.model.llm.tie_weights
        tie(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the vocabulary of the LLM."""
        embeddings = self.model.llm.resize_token_embeddings(*args, **kwargs)
        self.config.text_config.vocab_size = embeddings.num_embeddings
        return embeddings

    # -- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        frames: Tensor | None = None,
        questions: Sequence[str] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int = 0,
        num_logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Run the model on one batch, as the processor makes it.

        Args:
            input_ids: ``(B, T)`` int64 with ``config.image_token_index`` where a picture goes.
            pixel_values: ``(N, 3, S, S)`` uint8 pictures on their canvas, in the order of the placeholders.
            boxes: For each picture ``(n_i, 4)`` float32 xyxy in canvas pixels; n_i may be 0.
            frames: ``(N,)`` bool, which pictures are frames of a video; None for none.
            questions: The question about each picture, for a system that reads it.
            attention_mask: ``(B, T)``, 0 on padding, left or right.
            position_ids: ``(B, L)`` with ``inputs_embeds`` or in a step with a cache; else they are counted.
            past_key_values: Cache of a step before; pictures are in it already.
            cache: The same in newer releases.
            inputs_embeds: ``(B, L, D)`` in place of ids, pictures and boxes.
            labels: ``(B, T)`` (``(B, L)`` with ``inputs_embeds``), ``config.ignore_index`` where there is no loss.
            use_cache: As in transformers.
            output_attentions: As in transformers.
            output_hidden_states: As in transformers.
            return_dict: As in transformers.
            cache_position: As in transformers.
            logits_to_keep: Give logits of the last positions alone; 0 for all.
            num_logits_to_keep: The same in older releases.
            num_items_in_batch: Labels over all accumulated batches, which the sum of losses is divided by.

        Returns:
            ``CausalLMOutputWithPast``; logits are ``(B, L, vocabulary)``.

        Raises:
            ValueError: Placeholders, pictures and sets of boxes differ in number, or pictures come with a full cache.
        """
        pictures, read = (pixel_values, boxes, frames, questions), (attention_mask, position_ids, cache_position)
        cache = past_key_values if cache is None else cache
        given, labels, context = self._inputs(input_ids, inputs_embeds, pictures, read, cache, labels)
        given |= {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        with context:
            kept = logits_to_keep or num_logits_to_keep or None
            output = self._decode((labels, num_items_in_batch), kept, use_cache=use_cache, **given)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pictures: _Pictures,
        read: tuple[Tensor | None, Tensor | None, Tensor | None],
        cache: Any,
        labels: Tensor | None,
    ) -> tuple[dict[str, Any], Tensor | None, AbstractContextManager[Any]]:
        """Arguments of the LLM with the pictures in them, labels of the same length, and where it reads them."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        attention_mask, position_ids, cache_position = read
        given: dict[str, Any] = {cache_name(self.model.llm): cache}
        if input_ids is not None and not is_filled(cache):
            merged = self._merge(input_ids, pictures, attention_mask, labels)
            given |= {"inputs_embeds": merged.inputs_embeds, "position_ids": merged.position_ids}
            given["attention_mask"] = merged.attention_mask.long()
            return given, None if labels is None else merged.labels, self.model.condition(merged.rows)
        if pictures[0] is not None:
            raise ValueError("pictures cannot be added to a cache or to inputs_embeds; give all ids with all pictures")
        given |= {"attention_mask": attention_mask, "position_ids": position_ids, "cache_position": cache_position}
        given |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        return given, labels, nullcontext()  # ``generate`` has opened it for later steps

    def _decode(
        self, wanted: tuple[Tensor | None, Tensor | int | None], logits_to_keep: int | None, **given: Any
    ) -> CausalLMOutputWithPast:
        """What the LLM makes of its inputs, with the loss where labels, and how many count, are given."""
        known = inspect.signature(self.model.llm.forward).parameters
        kept = ("logits_to_keep", "num_logits_to_keep")  # the same in newer and older releases
        given |= dict.fromkeys(kept, logits_to_keep)
        for name in ("cache_position", *kept):  # not every LLM has them
            if name not in known or given.get(name) is None:
                given.pop(name, None)
        output, (labels, count) = self.model.llm(return_dict=True, **given), wanted
        loss = None if labels is None else _loss(output.logits, labels.to(output.logits.device), count)
        found = {name: output.get(name) for name in (cache_name(self.model.llm), "hidden_states", "attentions")}
        return CausalLMOutputWithPast(loss=loss, logits=output.logits, **found)

    def _merge(
        self,
        input_ids: Tensor,
        pictures: _Pictures,
        attention_mask: Tensor | None,
        labels: Tensor | None = None,
        padding_side: str | None = None,
    ) -> Spliced:
        """Put the tokens of pictures and boxes into the text; rows are padded on the side they came padded on."""
        pixel_values, boxes, frames, questions = pictures
        data: dict[str, Any] = {"input_ids": input_ids, "labels": labels}
        if attention_mask is not None:
            data["attention_mask"] = attention_mask.bool()
        if pixel_values is not None:
            data["canvas"] = pixel_values.to(input_ids.device)
            data |= {"frames": None if frames is None else frames.tolist(), **canvas_flags(input_ids.tolist())}
            if self.model.part_of(ObjectReader) is not None:
                data["boxes"] = checked_boxes(boxes, len(pixel_values))
            if questions is not None and (pieces := self.model.word_pieces(questions)) is not None:
                data["extra"] = {"pieces": pieces.map(lambda part: part.to(input_ids.device))}
        if padding_side is None:
            is_left = attention_mask is not None and not bool(attention_mask[:, 0].all())
            padding_side = "left" if is_left else "right"
        return self.model.merge(data, padding_side=padding_side)  # type: ignore[arg-type]

    # -- generation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        pixel_values: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        frames: Tensor | None = None,
        questions: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue every row of a batch.

        Args:
            inputs: ``(B, T)`` ids, also as ``input_ids``; as for :meth:`forward`.
            *args: As for transformers' ``generate``.
            pixel_values: As for :meth:`forward`.
            boxes: As for :meth:`forward`.
            frames: As for :meth:`forward`.
            questions: As for :meth:`forward`.
            **kwargs: As for transformers' ``generate``, ``attention_mask`` included.

        Returns:
            As transformers' ``generate`` does: ``(B, T + new)`` ids, the given ones first; a picture keeps its one
            placeholder, a negative id, which the processor's ``decode`` can read and a tokenizer cannot.

        Raises:
            ValueError: As for :meth:`forward`.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            return super().generate(input_ids, *args, **kwargs)
        if any(is_filled(kwargs.get(name)) for name in ("past_key_values", "cache")):
            raise ValueError("generate cannot continue from a filled cache; give all ids with all pictures")
        mask = kwargs.pop("attention_mask", None)
        merged = self._merge(input_ids, (pixel_values, boxes, frames, questions), mask, padding_side="left")
        with self.model.condition(merged.rows):
            output = super().generate(
                None,
                *args,
                inputs_embeds=merged.inputs_embeds,
                attention_mask=merged.attention_mask.long(),
                **kwargs,
            )
        if isinstance(output, Tensor):
            return with_prompt(input_ids, output)
        output.sequences = with_prompt(input_ids, output.sequences)
        return output

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of the next step, as the LLM wants them."""
        given = {"attention_mask": attention_mask, "inputs_embeds": inputs_embeds, **kwargs}
        return self.model.llm.prepare_inputs_for_generation(input_ids, **given)


def _loss(logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    loss = token_loss(logits, labels)
    return loss if items is None else loss * (labels[:, 1:] != IGNORE_INDEX).sum() / items
