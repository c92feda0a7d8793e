"""Text or conversation, pictures and boxes to a batch for the model, and generated ids back to answers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, StoppingCriteriaList
from transformers.processing_utils import ProcessorMixin

from mg_llava.compat import names_part_classes
from mg_llava.data.inputs import is_nothing
from mg_llava.data.text.pieces import question_of
from mg_llava.data.text.stopping import Stops
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.encoding import EncodedRow, RowEncoder
from mg_llava.hf.image_processing import PictureBatch, picture_features, require_torch
from mg_llava.hf.portable import complete_processor
from mg_llava.hf.prompts import chat_template as write_chat_template
from mg_llava.hf.prompts import template_of, template_to_dict, to_turns
from mg_llava.hf.rows import list_rows, pad_rows, pictures_of
from mg_llava.tokens import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    PAD_TOKEN_ID,
    tokens_without_embeddings,
)


@names_part_classes
class MGLLaVAProcessor(ProcessorMixin):
    """Tokenizer, image processor and prompt template of a model.

    Args:
        image_processor: A ``MGLLaVAImageProcessor``.
        tokenizer: The LLM's tokenizer.
        template: The prompt template that the model was trained with: its name, or its pieces.
        chat_template: Jinja; written from ``template`` where None.
        reads_question: Whether the model reads the question about each picture beside the text.
        parts: What changes the text by the boxes of the pictures, as dicts; see ``mg_llava.data.text.prompt``.
        **kwargs: As for ``ProcessorMixin``.
    """

    attributes = ["image_processor", "tokenizer"]
    valid_kwargs = ["template", "chat_template", "reads_question", "parts"]

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        template: Any = None,
        chat_template: str | None = None,
        reads_question: bool = False,
        parts: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        self.reads_question, self.parts = reads_question, list(parts)
        if template is None:
            raise ValueError("a processor needs template, the prompt template that the model was trained with")
        self.template = template_to_dict(template)
        if chat_template is None and tokenizer is not None:
            chat_template = write_chat_template(template_of(template), tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        for name, value in kwargs.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As ``ProcessorMixin.from_pretrained``, but a tokenizer that is not the model's is refused.

        Raises:
            ValueError: It has tokens that the LLM beside it has no word embeddings for.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        try:
            config, _ = MGLLaVAConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:  # there is no model beside it
            return processor
        if config.get("model_type") == MGLLaVAConfig.model_type:
            rows = MGLLaVAConfig.from_dict(config).vocab_size
            if problem := tokens_without_embeddings(processor.tokenizer, rows):
                raise ValueError(f"{pretrained_model_name_or_path}: {problem}")
        return processor

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``ProcessorMixin.save_pretrained``, for older and newer releases of transformers."""
        written = super().save_pretrained(save_directory, *args, **kwargs)
        complete_processor(Path(save_directory), self)
        return written

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a batch."""
        return ["input_ids", "attention_mask", "pixel_values", "boxes", "frames", "questions"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        boxes: Any = None,
        conversation: Sequence[Any] | None = None,
        objects: Any = None,
        padding: bool | str = True,
        return_tensors: Any = "pt",
        padding_side: str = "left",
        max_length: int | None = None,
        return_labels: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch of B rows and N pictures.

        Args:
            text: A prompt that is written out, with ``<image>`` where a picture goes (``apply_chat_template`` writes
                it), or a list of them.
            images: Pictures (PIL, or paths) of the row: one, or a list; or the path of a video. With ``<video>`` in
                the text they are the frames of one. Of several rows: a list with what each row has (a picture, a
                list, None), or one flat list in the order of the placeholders.
            boxes: Boxes of the row's picture, xyxy in original pixels: ``(n, 4)`` numbers, or a dict with ``boxes``,
                ``scores``, ``labels``; of several pictures a list. Of several rows: a list with what each row has.
                None where there are none.
            conversation: In place of ``text``: messages (``role``, ``content``), or a list of conversations. Pictures
                without a placeholder come first. Placeholders in what an assistant said are words, but where labels
                are made; those in answers of records (``from``, ``value``) stand for their regions.
            objects: What ``<box:i>`` and ``<object:i>`` in a row stand for: boxes xyxy in original pixels, or dicts
                with ``box``, ``label`` and ``picture``. Of several rows: a list with what each row has. The row's
                boxes where None.
            padding: Fill up shorter rows to the longest (True, ``"longest"``), to ``max_length`` (``"max_length"``),
                or not at all (False).
            return_tensors: ``"pt"`` is all there is.
            padding_side: ``"left"`` to generate; ``"right"`` may be used to train.
            max_length: Length of ``padding="max_length"``; conversations with labels are shortened to it.
            return_labels: Whether the conversations end with an answer and ``labels`` shall be made: to train.
            **kwargs: Settings of the image processor that differ for this call.

        Returns:
            ``input_ids`` (B, T) int64 with a negative id for each picture, object image and named box,
            ``attention_mask`` (B, T) int64, where there are N > 0 pictures and object images ``pixel_values``
            (N, 3, S, S) uint8 and ``boxes``, N tensors (n_i, 4) float32 in canvas pixels; of videos ``frames`` (N,)
            bool, which pictures are frames; with ``return_labels`` also ``labels`` (B, T); and
            ``questions``, N texts, for a model that reads them.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: Pictures, placeholders and boxes do not match, or a row is malformed; the message names it.
        """
        require_torch(return_tensors)
        rows, is_batch = list_rows(text, conversation, return_labels)
        kwargs = {name: value for name, value in kwargs.items() if name not in _IGNORED}
        made = RowEncoder(self, return_labels, max_length, kwargs).encode(rows, is_batch, images, boxes, objects)
        pad_id = self.tokenizer.pad_token_id
        filled = partial(pad_rows, padding=padding, side=padding_side, max_length=max_length)
        data: dict[str, Any] = filled([row.ids for row in made], value=PAD_TOKEN_ID if pad_id is None else pad_id)
        if return_labels:
            data["labels"] = filled([row.labels for row in made], value=IGNORE_INDEX)["input_ids"]
        return PictureBatch({**data, **self._about_pictures(rows, made)})

    def _about_pictures(self, rows: Sequence[Any], made: Sequence[EncodedRow]) -> dict[str, Any]:
        """Keys of a batch about its N pictures and object images."""
        seen = [(given, row, one) for given, row in zip(rows, made, strict=True) for one in row.shown]
        data: dict[str, Any] = {}
        if self.reads_question and seen:
            data["questions"] = [_question(given) for given, _, _ in seen]
        if any(row.is_video for row in made):
            data["frames"] = torch.tensor([row.is_video for _, row, _ in seen])
        return data | picture_features([one for *_, one in seen])

    def apply_chat_template(
        self, conversation: Sequence[Any], chat_template: str | None = None, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """Write a conversation out, or make a batch of it.

        Args:
            conversation: Messages with ``role`` and ``content``, or a list of conversations.
            chat_template: Jinja in place of the processor's.
            tokenize: Make the batch of ``processor(conversation=...)``, of which ``return_dict=True`` gives all and
                ``return_dict=False``, the default, the ids.
            **kwargs: With ``tokenize`` arguments of the processor, such as ``images`` and ``boxes``; else of
                transformers' ``apply_chat_template``.
        """
        if not tokenize:
            return super().apply_chat_template(conversation, chat_template, tokenize=False, **kwargs)
        if chat_template is not None:
            raise ValueError("a chat_template of your own writes texts: use tokenize=False, then processor(text)")
        kwargs |= kwargs.pop("processor_kwargs", None) or {}  # how newer pipelines give them
        if is_nothing(kwargs.get("images")):
            kwargs["images"] = pictures_of(conversation) or None
        as_dict = kwargs.pop("return_dict", False)
        for name in ("add_generation_prompt", "continue_final_message"):
            kwargs.pop(name, None)
        batch = self(conversation=conversation, **kwargs)
        return batch if as_dict else batch["input_ids"]

    # -- answers --------------------------------------------------------------------------------------------------

    @property
    def stops(self) -> Stops:
        """The ends of an answer: single tokens, and stop words of several."""
        return Stops(self.tokenizer, template_of(self.template))

    def stopping_criteria(self) -> StoppingCriteriaList | None:
        """``stopping_criteria`` for ``generate`` where a stop word is not one token; else None."""
        return self.stops.criteria()

    def decode_answers(self, sequences: Any, input_ids: Tensor | None = None) -> list[str]:
        """Answers in what ``generate`` gave.

        Args:
            sequences: ``(B, T + new)`` ids, or an output with ``sequences``.
            input_ids: ``(B, T)`` ids that ``generate`` was given, to be left out; None where they are out already.

        Returns:
            B texts without special tokens and stop words, stripped.
        """
        ids = getattr(sequences, "sequences", sequences)
        start = 0 if input_ids is None else input_ids.shape[1]
        stops = self.stops
        return [stops.cut(text)[0] for text in self.batch_decode(ids[:, start:], skip_special_tokens=True)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """As the tokenizer's ``decode``; a picture reads ``<image>``, or nothing without special tokens."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        pieces: list[list[int]] = [[]]
        for token in [ids] if isinstance(ids, int) else ids:
            if token == IMAGE_TOKEN_INDEX:
                pieces.append([])
            elif token >= 0:
                pieces[-1].append(token)
        texts = [self.tokenizer.decode(piece, skip_special_tokens=skip_special_tokens, **kwargs) for piece in pieces]
        return ("" if skip_special_tokens else IMAGE_PLACEHOLDER).join(texts)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """:meth:`decode` of each row of ids, or of an output with ``sequences``."""
        return [self.decode(row, **kwargs) for row in getattr(sequences, "sequences", sequences)]

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        """Texts of generated ids without special tokens; for transformers' pipeline."""
        return self.batch_decode(generated_outputs, **{"skip_special_tokens": True, **kwargs})


_IGNORED = ("legacy", "add_special_tokens")
"""Arguments that transformers' pipelines give to every processor, and that mean nothing here."""


def _question(row: Any) -> str:
    """What a conversation asks."""
    if isinstance(row, str):
        raise ValueError("this model reads questions apart; give conversation, in which they are told from the rest")
    return question_of(to_turns(row)[0])
