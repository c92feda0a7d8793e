"""Objects of a picture as a system's detector finds them, and refined by its head, its LLM, or both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mg_llava.data.choices import wrong_choices
from mg_llava.data.collate import collate
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.frames import Canvas
from mg_llava.data.records.schema import BoxRecord, Turn, make_box_record
from mg_llava.data.text.perception import PerceptionPrompt
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.naming import Naming, name_objects
from mg_llava.models.adapters.biases import plain_llm
from mg_llava.models.generation import evaluating
from mg_llava.models.interfaces import Detected, class_scores
from mg_llava.models.losses.language import decoder_of
from mg_llava.tokens import IMAGE_PLACEHOLDER

Refine = Literal["head", "language", "both", "none"]


class FoundObjects(NamedTuple):
    """Objects of a picture, original pixels; refined ones in the order of the raw ones."""

    raw: BoxRecord
    refined: BoxRecord


@dataclass(frozen=True)
class ObjectFinder:
    """Finds the objects of pictures with a system that has a detector.

    Args:
        model: The system, such as ``MRMLLM``.
        front_end: Of its predictor.
        refine: ``head``, the trained one; ``language``, the LLM names the objects, which needs no training; ``both``,
            one after the other; ``none``.
        naming: How the LLM names them.
        question: What is asked while the head reads along.

    Raises:
        ValueError: A setting is unknown, or the system lacks detector or head.
    """

    model: Any
    front_end: FrontEnd
    refine: Refine = "head"
    naming: Naming = field(default_factory=Naming)
    question: str = "Detect all objects."

    def __post_init__(self) -> None:
        problems = wrong_choices(self)
        lacking = [name for name in ("detector", "refine") if getattr(self.model, name, None) is None]
        if "detector" in lacking or (self.refine in ("head", "both") and lacking):
            problems.append(
                f"the model has no {lacking[0]}; give one that was trained with it, or refine='language' without head"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> FoundObjects:
        """The objects of a picture."""
        processor = self.front_end.picture_processor
        picture = processor(to_rgb(image, processor.mode, processor.apply_exif))
        sample = {"id": "picture", "images": [picture.pixels], "boxes": [picture.boxes]}
        with evaluating(self.model):
            data = self.model.data_preprocessor({"canvas": picture.pixels[None], "boxes": [picture.boxes]}, False)
            if self.refine in ("head", "both"):
                seeing = self.model.see(data)
                found = seeing[0][0].about.found
                raw = self._record(found, picture.canvas)
                found = self._by_head(sample, raw, picture.canvas, seeing)
            else:
                found = self.model.detector(data["canvas"]).detected
                raw = self._record(found, picture.canvas)
            if self.refine in ("language", "both"):
                return FoundObjects(raw, self._by_language(found, picture.canvas))
        return FoundObjects(raw, self._record(found, picture.canvas))

    def _by_head(self, sample: dict[str, Any], raw: BoxRecord, canvas: Canvas, seeing: Any) -> Detected:
        model, states, mask = self.model, None, None
        if model.reads_language:
            turns = [Turn("human", f"{IMAGE_PLACEHOLDER}\n{self.question}")]
            ids = self.front_end.encode(turns, None, [raw], [(canvas.width, canvas.height)])
            inputs = model.merge(self._batch({**sample, "input_ids": ids}), seeing=seeing)
            with model.condition(inputs.rows):
                states = decoder_of(model.llm)(
                    inputs_embeds=inputs.inputs_embeds,
                    attention_mask=inputs.attention_mask,
                    position_ids=inputs.position_ids,
                    use_cache=False,
                ).last_hidden_state
            mask = inputs.attention_mask
        refined: Detected = model.refine_objects(seeing, states, mask, (1,))
        return refined

    def _batch(self, sample: dict[str, Any]) -> Any:
        data = collate([sample])["data"]
        return self.model.data_preprocessor({"input_ids": data["input_ids"]}, False)

    def _by_language(self, found: Detected, canvas: Canvas) -> BoxRecord:
        spec, size = self.model.detector.spec, (canvas.width, canvas.height)
        record = self._record(found, canvas)
        likely = class_scores(found.logits[0], spec.has_rest)  # (K, classes)
        there = likely.sum(-1) if spec.has_rest else likely.amax(-1)
        labels, sure = name_objects(
            self.naming,
            (record, size),
            (likely, there, spec.classes),
            self._prompt(),
            self._likelihood,
        )
        scores = torch.where(there >= self.naming.threshold, there, found.scores[0]).double().cpu().numpy()
        return BoxRecord(record.boxes, scores * sure, labels)

    def _prompt(self) -> PerceptionPrompt:
        """How objects are written: as in the prompts of the training."""
        own = [part for part in self.front_end.parts if isinstance(part, PerceptionPrompt)]
        return own[0] if own else PerceptionPrompt()

    def _likelihood(self, texts: Sequence[str]) -> list[float]:
        """Log-probabilities of texts at the beginning of a conversation, under the LLM as it came."""
        prompt = self.front_end.encode([Turn("human", IMAGE_PLACEHOLDER)], None)
        before = prompt[: next(place for place, number in enumerate(prompt) if number < 0)]
        tokenizer, model = self.front_end.tokenizer, self.model
        rows = [before + tokenizer(f"\n{text}", add_special_tokens=False)["input_ids"] for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        ids, mask = ids.to(model.device), mask.to(model.device)
        with plain_llm(model):  # prompts were trained for answers, and know nothing of lists
            logits = model.llm(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        own: Tensor = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]  # (rows, L - 1)
        return (own * mask[:, 1:]).sum(1).tolist()

    def _record(self, found: Detected, canvas: Canvas) -> BoxRecord:
        """Objects of one canvas, original pixels, clipped to the picture."""
        classes = self.model.detector.spec.classes
        corners = canvas.from_centers(found.boxes[0].double().cpu().numpy())
        labels = [classes[number] for number in found.logits[0, :, : len(classes)].argmax(-1).tolist()]
        return make_box_record(corners, found.scores[0].double().cpu().tolist(), labels, "detected objects")
