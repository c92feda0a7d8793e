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
    """

    tokenizer: Any
    template: Template
    picture_processor: PictureProcessor
    stops: Stops
    proposer: Proposer | None = None
    system: str = ""

    @classmethod
    def build(
        cls, tokenizer: Any, template: Any, picture_processor: Any, ends: Any, proposer: Proposer | None, system: str
    ) -> "FrontEnd":
        """From configs or objects; ``ends`` are the end tokens of the LLM's folder: one, several or None."""
        tokenizer, template = build_tokenizer(tokenizer), Template.build(template)
        stops = Stops(tokenizer, template, [ends] if isinstance(ends, int) else ends or [])
        return cls(tokenizer, template, build_transform(picture_processor), stops, proposer, system)

    def encode(self, turns: Sequence[Turn], system: str | None) -> list[int]:
        """Ids of a conversation that ends with a question."""
        return encode_prompt(turns, self.tokenizer, self.template, self.system if system is None else system)

    def propose(self, image: Image.Image, owner: str) -> BoxRecord:
        """Boxes of a picture that came without."""
        if self.proposer is None:
            return make_boxes([], owner)
        processor = self.picture_processor
        return make_boxes(self.proposer(to_rgb(image, processor.mode, processor.apply_exif)), f"{owner}, proposals")
