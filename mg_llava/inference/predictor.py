"""Questions to answers: the Python interface that chat, evaluation and demo share.

Text, pictures and boxes take the same way as in training: ``encode_prompt``, ``PictureProcessor``, ``collate``.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mg_llava.data.inputs import BoxesLike, PictureLike, Proposer
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.text.conversation import Template
from mg_llava.data.text.stopping import Stops
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.inference.answering import Answering, Batch
from mg_llava.inference.batching import Item, loaded_windows, windows
from mg_llava.inference.requests import Answer, Request
from mg_llava.models.parts import for_any_machine
from mg_llava.registry import MODELS, TRANSFORMS

CONFIG_KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""What a config must have to predict with."""

Progress = Callable[[int, int], None]
"""Called with the number of answers that are there and of all."""

WINDOW_BATCHES = 16
"""Batches that are sorted by length together."""

CACHE_MB = 1024
"""Limit of the encoded pictures of a window."""


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
            ValueError: If the config cannot be read or lacks a part, the checkpoint is of another kind or another
                model, or the device is not there.
        """
        config = _load_config(config)
        target = _find_device(device)
        if not Path(checkpoint).exists():
            raise FileNotFoundError(
                f"checkpoint {checkpoint} does not exist; `last_checkpoint` in a work_dir names it"
            )
        settings = for_any_machine(config.model)
        if (settings.get("llm") or {}).get("tuning") == "full":
            settings["pretrained_pth"] = None  # all of it is in the checkpoint
        model = MODELS.build(settings)
        model.load_pretrained(str(checkpoint), whole=True)
        return cls(model.to(target), config.tokenizer, config.prompt_template, config.picture_processor, **kwargs)

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
            workers: Threads that decode and prepare the next pictures meanwhile.
            **generation: Overrides the predictor's arguments of ``generate``.

        Returns:
            The answers, in the order of ``requests``.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: As for :meth:`predict`; messages name the request.
        """
        groups: dict[Hashable, list[Item]] = {}
        for number, request in enumerate(requests):
            item = Item(self, number, request)
            groups.setdefault(item.key, []).append(item)
        items = [item for group in groups.values() for item in group]
        answers: dict[int, Answer] = {}
        for batch in self._stream(items, batch_size, workers, CACHE_MB, **generation):
            for number, answer in batch:
                if isinstance(answer, Exception):
                    raise answer
                answers[number] = answer
            if progress is not None:
                progress(len(answers), len(items))
        return [answers[number] for number in range(len(items))]

    def stream(
        self,
        requests: Iterable[Request],
        batch_size: int = 32,
        workers: int = 2,
        cache_mb: int = CACHE_MB,
        **generation: Any,
    ) -> Iterator[Batch]:
        """Answer a stream of any length, batch by batch, in an order that suits the batches.

        Pictures are opened and encoded when they are due, once for all neighbors in the stream that share them
        (see ``Request.key``). Greedy answers in float32 do not depend on the batches: where rounding could decide, the
        question is asked again alone (see ``ties``).

        Args:
            requests: The questions; read ahead by a window of some batches.
            batch_size: Questions at a time.
            workers: Threads that decode and prepare the next pictures meanwhile.
            cache_mb: Limit of the encoded pictures that are kept at a time, in MB.
            **generation: Overrides the predictor's arguments of ``generate``.

        Yields:
            The answers of a batch with the places of their requests in the stream. Where a request cannot be answered,
            the error stands for the answer: ``PictureError``, or ``ValueError`` for a question that is empty or too
            long. Errors of a function ``boxes`` are raised.
        """
        failed: list[tuple[int, Answer | ValueError]] = []
        for batch in self._stream(self._items(requests, failed), batch_size, workers, cache_mb, **generation):
            yield [*failed, *batch]
            failed.clear()
        if failed:
            yield failed

    def _items(self, requests: Iterable[Request], failed: list[tuple[int, Answer | ValueError]]) -> Iterator[Item]:
        for number, request in enumerate(requests):
            try:
                yield Item(self, number, request)
            except ValueError as error:
                failed.append((number, error))

    def _stream(
        self, items: Iterable[Item], batch_size: int, workers: int, cache_mb: int, **generation: Any
    ) -> Iterator[Batch]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        answering = Answering(self, {**self.generation, **generation}, batch_size)
        room = max(1, int(cache_mb * 1e6 / answering.picture_bytes))
        stream = windows(items, batch_size * WINDOW_BATCHES, room)
        ahead = min(4 * batch_size, room)
        for window in loaded_windows(stream, workers, ahead):
            yield from answering.window(window)

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of a picture."""
        return self.model.visual_encoder.grid**2


def _load_config(config: str | Path | Config) -> Config:
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"config {config} does not exist; give the .py file that the model was trained with"
            )
        try:
            config = Config.fromfile(str(config))
        except Exception as error:  # whatever the code of a config raises
            raise ValueError(
                f"config {config} cannot be read ({type(error).__name__}: {error}); give the .py file that the model "
                "was trained with"
            ) from error
    missing = [key for key in CONFIG_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(f"config lacks {', '.join(missing)}; a training config of this project has them all")
    return config


def _find_device(name: str) -> torch.device:
    """A device of this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(
            f"device {name!r} is not there ({str(error).splitlines()[0]}); allowed: auto, cpu, cuda:0, ..."
        ) from error
    return device
