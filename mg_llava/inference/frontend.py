"""What lies between a user's words and pictures and a model: tokenizer, template, pictures, boxes, ends of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mg_llava.data.config import build_transform
from mg_llava.data.inputs import Proposer, make_boxes
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import BoxRecord, Turn
from mg_llava.data.text.conversation import Template, encode_prompt
from mg_llava.data.text.prompt import PromptPart, apply_parts, build_parts
from mg_llava.data.text.stopping import Stops
from mg_llava.data.text.tokenizer import build_tokenizer


@dataclass(frozen=True)
class FrontEnd:
    """Handed to whatever prepares requests; it knows no model.

    Attributes:
        tokenizer: The LLM's tokenizer.
        template: Its prompt template.
        picture_processor: That of the training.
        stops: Ends of an answer.
        proposer: Finds the boxes of requests that come without; None for no boxes.
        system: System text before the first question, where a request has none of its own.
        parts: What changes the text by the boxes, as in training.
    """

    tokenizer: Any
    template: Template
    picture_processor: PictureProcessor
    stops: Stops
    proposer: Proposer | None = None
    system: str = ""
    parts: tuple[PromptPart, ...] = ()

    @classmethod
    def build(
        cls,
        tokenizer: Any,
        template: Any,
        picture_processor: Any,
        ends: Any,
        proposer: Proposer | None,
        system: str,
        parts: Sequence[Any] = (),
    ) -> "FrontEnd":
        """From configs or objects; ``ends`` are the end tokens of the LLM's folder: one, several or None."""
        tokenizer, template = build_tokenizer(tokenizer), Template.build(template)
        stops = Stops(tokenizer, template, [ends] if isinstance(ends, int) else ends or [])
        processor = build_transform(picture_processor)
        return cls(tokenizer, template, processor, stops, proposer, system, build_parts(parts))

    def encode(
        self,
        turns: Sequence[Turn],
        system: str | None,
        objects: Sequence[BoxRecord] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> list[int]:
        """Ids of a conversation that ends with a question.

        Args:
            turns: The conversation.
            system: System text before it; None for that of all requests.
            objects: Of each picture its boxes, original pixels, once they are known; the parts write them.
            sizes: Of each picture its width and height.
        """
        if objects:
            turns = apply_parts(self.parts, tuple(turns), objects, sizes)
        return encode_prompt(turns, self.tokenizer, self.template, self.system if system is None else system)

    def propose(self, image: Image.Image, owner: str) -> BoxRecord:
        """Boxes of a picture that came without."""
        if self.proposer is None:
            return make_boxes([], owner)
        processor = self.picture_processor
        return make_boxes(self.proposer(to_rgb(image, processor.mode, processor.apply_exif)), f"{owner}, proposals")
