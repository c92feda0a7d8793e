"""Questions to answers: the Python interface that chat, evaluation and demo share.

Text, pictures and boxes take the same way as in training: ``encode_prompt``, ``PictureProcessor``, ``collate``.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mg_llava.data.collate import collate
from mg_llava.data.conversation import Template, encode_prompt
from mg_llava.data.pictures import to_rgb
from mg_llava.data.processor import PictureProcessor, ProcessedPicture
from mg_llava.data.schema import BoxRecord
from mg_llava.data.tokenizer import build_tokenizer
from mg_llava.inference.requests import (
    Answer,
    BoxesLike,
    PictureLike,
    Proposer,
    Request,
    SeenPicture,
    list_boxes,
    list_pictures,
    load_picture,
    make_boxes,
    make_turns,
)
from mg_llava.inference.stopping import Stops
from mg_llava.registry import MODELS, TRANSFORMS

CONFIG_KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""What a config must have to predict with."""

Progress = Callable[[int, int], None]
"""Called with the number of answers that are there and of all."""

Pictures = list[ProcessedPicture]


class Predictor:
    """Answers questions about pictures, with boxes of yours, of a proposer, or none.

    Args:
        model: An ``MGLLaVA``; it is put into evaluation mode.
        tokenizer: The LLM's tokenizer, its folder, or a config of one.
        template: Name of the prompt template, or a template.
        picture_processor: The ``PictureProcessor`` of the training, or its config.
        proposer: Finds the boxes of requests that come without; None for no boxes.
        system: System text before the first question; none, as in training, by default.
        **generation: Arguments of the LLM's ``generate``, e.g. ``max_new_tokens=100``; greedy by default.

    Examples:
        >>> predictor = Predictor.from_config("configs/mg_llava_nano_instruct.py", "work_dirs/.../iter_250.pth")
        >>> predictor.predict("picture.jpg", "Which digit is leftmost?", boxes=[[10, 20, 30, 44]]).text
        '7'
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: Any,
        picture_processor: Any,
        proposer: Proposer | None = None,
        system: str = "",
        **generation: Any,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = build_tokenizer(tokenizer)
        self.template = Template.build(template)
        is_config = isinstance(picture_processor, dict)
        self.picture_processor: PictureProcessor = (
            TRANSFORMS.build(picture_processor) if is_config else picture_processor
        )
        # the low-resolution view is sampled from a canvas of any size
        if model.visual_encoder_aux is not None and self.picture_processor.image_size != model.high_res_size:
            print_log(
                f"pictures are made for {self.picture_processor.image_size} px, the model reads {model.high_res_size}",
                logger="current",
                level=logging.WARNING,
            )
        self.proposer = proposer
        self.system = system
        self.generation = {"max_new_tokens": 100, "do_sample": False} | generation
        eos = model.llm.generation_config.eos_token_id
        self.stops = Stops(self.tokenizer, self.template, [eos] if isinstance(eos, int) else eos or [])

    @classmethod
    def from_config(
        cls, config: str | Path | Config, checkpoint: str | Path, device: str = "auto", **kwargs: Any
    ) -> "Predictor":
        """Build the model of a training config and load a checkpoint of it.

        Args:
            config: A training config, or the path of one.
            checkpoint: What that training wrote: mmengine ``.pth`` file, DeepSpeed folder or safetensors file.
            device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda:1"``...
            **kwargs: As for the class: ``proposer``, ``system``, generation arguments.

        Raises:
            FileNotFoundError: If config or checkpoint do not exist.
            ValueError: If the config lacks a part, or the checkpoint is of another kind or another model.
        """
        config = _load_config(config)
        if not Path(checkpoint).exists():
            raise FileNotFoundError(
                f"checkpoint {checkpoint} does not exist; `last_checkpoint` in a work_dir names it"
            )
        settings = dict(config.model)
        if (settings.get("llm") or {}).get("tuning") == "full":
            settings["pretrained_pth"] = None  # all of it is in the checkpoint
        model = MODELS.build(settings)
        model.load_pretrained(str(checkpoint), whole=True)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), config.tokenizer, config.prompt_template, config.picture_processor, **kwargs)

    def predict(
        self,
        picture: PictureLike | Sequence[PictureLike] | None = None,
        question: str | Sequence[Any] = "",
        boxes: BoxesLike = None,
        **generation: Any,
    ) -> Answer:
        """Answer one question; arguments as in :class:`Request`, ``generation`` overrides the predictor's.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: The question is empty or too long, or boxes are malformed (see ``requests``).
        """
        return self.predict_many([Request(question, picture, boxes)], **generation)[0]

    def predict_many(
        self,
        requests: Sequence[Request],
        batch_size: int = 8,
        progress: Progress | None = None,
        workers: int = 2,
        **generation: Any,
    ) -> list[Answer]:
        """Answer many questions, in batches of similar length, padded on the left.

        Args:
            requests: The questions. All texts and boxes are checked before the first answer.
            batch_size: Questions at a time.
            progress: Called after each batch.
            workers: Threads that decode and prepare the pictures of the next batch meanwhile.
            **generation: Overrides the predictor's arguments of ``generate``.

        Returns:
            The answers, in the order of ``requests``.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: As for :meth:`predict`; messages name the request.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        items = [_Item(self, number, request) for number, request in enumerate(requests)]
        order = sorted(items, key=lambda item: (-item.rough_length, item.number))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        answers: dict[int, Answer] = {}
        for batch, pictures in _prepared(batches, workers):
            for item, answer in zip(batch, self._answer(batch, pictures, generation), strict=True):
                answers[item.number] = answer
            if progress is not None:
                progress(len(answers), len(items))
        return [answers[number] for number in range(len(items))]

    def _answer(self, batch: Sequence["_Item"], pictures: Sequence[Pictures], generation: dict) -> list[Answer]:
        instances = [item.instance(seen) for item, seen in zip(batch, pictures, strict=True)]
        settings = self._settings(batch, instances, generation)
        data = self.model.data_preprocessor(collate(instances), False)["data"]
        rows = self.model.generate(data, **settings)
        answers = []
        for item, seen, ids in zip(batch, pictures, rows, strict=True):
            text, stopped = self.stops.cut(self.tokenizer.decode(ids, skip_special_tokens=True))
            truncated = len(ids) >= settings["max_new_tokens"] and not stopped
            answers.append(Answer(text, tuple(ids.tolist()), tuple(map(_seen, seen)), truncated, item.request.id))
        return answers

    def _settings(self, batch: Sequence["_Item"], instances: Sequence[dict], generation: dict) -> dict[str, Any]:
        """Arguments of ``generate`` for one batch; the LLM's context limits the number of new tokens."""
        settings = {"eos_token_id": self.stops.ids, **self.generation, **generation}
        if not settings["do_sample"]:
            settings = {"temperature": None, "top_p": None, "top_k": None, **settings}
        criteria = self.stops.criteria()
        if criteria is not None:
            settings["stopping_criteria"] = [*criteria, *settings.get("stopping_criteria", [])]
        context = getattr(self.model.llm.config, "max_position_embeddings", None)
        if context is not None:
            lengths = [self._merged_length(instance) for instance in instances]
            longest = max(range(len(batch)), key=lengths.__getitem__)
            if lengths[longest] >= context:
                raise ValueError(
                    f"{batch[longest].owner}: question, picture and box tokens are {lengths[longest]} long, the LLM's "
                    f"context is {context}; shorten the question or give fewer boxes"
                )
            settings["max_new_tokens"] = min(settings["max_new_tokens"], context - lengths[longest])
        return settings

    def _merged_length(self, instance: dict[str, Any]) -> int:
        """Length of a row after the picture and box tokens have come in."""
        pictures = len(instance["images"])
        boxes = sum(map(len, instance["boxes"])) if self.model.bbox_projector is not None else 0
        return len(instance["input_ids"]) + pictures * (self.visual_tokens - 1) + boxes

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of a picture."""
        return self.model.visual_encoder.grid**2


class _Item:
    """A request that was checked and tokenized; its pictures are opened when their batch is due."""

    def __init__(self, predictor: Predictor, number: int, request: Request) -> None:
        self.predictor = predictor
        self.number = number
        self.request = request
        self.owner = f"request {request.id or number!r}"
        self.paths = list_pictures(request.picture, self.owner)
        self.boxes = list_boxes(request.boxes, len(self.paths), self.owner)
        turns = make_turns(request.question, len(self.paths), self.owner)
        self.ids = encode_prompt(turns, predictor.tokenizer, predictor.template, predictor.system)
        self.rough_length = len(self.ids) + len(self.paths) * predictor.visual_tokens

    def load(self) -> Pictures:
        """The pictures with their boxes on the canvas."""
        return [self._load(path, boxes) for path, boxes in zip(self.paths, self.boxes, strict=True)]

    def _load(self, path: PictureLike, boxes: BoxRecord | None) -> ProcessedPicture:
        processor, propose = self.predictor.picture_processor, self.predictor.proposer
        image = load_picture(path, self.owner)
        if boxes is None and propose is not None:
            found = propose(to_rgb(image, processor.mode, processor.apply_exif))
            boxes = make_boxes(found, f"{self.owner}, proposals")
        return processor(image, boxes)

    def instance(self, pictures: Pictures) -> dict[str, Any]:
        """A sample for ``collate``."""
        return {
            "id": self.request.id or str(self.number),
            "input_ids": self.ids,
            "images": [picture.pixels for picture in pictures],
            "boxes": [picture.boxes for picture in pictures],
        }


def _prepared(batches: Sequence[list[_Item]], workers: int) -> Iterator[tuple[list[_Item], list[Pictures]]]:
    """Batches with their pictures; threads prepare one batch ahead."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: list[list[Future[Pictures]]] = []
        try:
            for number, batch in enumerate(batches):
                for upcoming in batches[number + len(waiting) : number + 2]:
                    waiting.append([pool.submit(item.load) for item in upcoming])
                yield batch, [future.result() for future in waiting.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


def _seen(picture: ProcessedPicture) -> SeenPicture:
    if picture.is_empty:
        return SeenPicture(picture.canvas, picture.canvas.to_original(picture.boxes.double().numpy()[:0]))
    boxes = picture.canvas.to_original(picture.boxes.double().numpy())
    return SeenPicture(picture.canvas, boxes, tuple(picture.labels), tuple(picture.scores))


def _load_config(config: str | Path | Config) -> Config:
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"config {config} does not exist; give the .py file that the model was trained with"
            )
        config = Config.fromfile(str(config))
    missing = [key for key in CONFIG_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(f"config lacks {', '.join(missing)}; a training config of this project has them all")
    return config
