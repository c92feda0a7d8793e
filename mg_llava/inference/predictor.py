"""Questions to answers: the Python interface that chat, evaluation and demo share.

Text, pictures and boxes take the same way as in training: ``encode_prompt``, ``PictureProcessor``, ``collate``.
"""

import logging
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mg_llava.data.inputs import BoxesLike, PictureLike, Proposer, said_turns
from mg_llava.inference.answering import Answered, Answering
from mg_llava.inference.batching import PreparedRequest, loaded_windows, windows
from mg_llava.inference.encoding import Statistics
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.loading import load_model
from mg_llava.inference.requests import Answer, Request
from mg_llava.tokens import tokens_without_embeddings

Progress = Callable[[int, int], None]
"""Called with the number of answers that are there and of all."""

WINDOW_BATCHES = 16
"""Batches that are sorted by length together."""

CACHE_MB = 1024
"""Limit of the encoded pictures of a window."""


class Predictor:
    """Answers questions about pictures, with boxes of yours, of a proposer, or none.

    Args:
        model: The system; it is put into evaluation mode.
        tokenizer: The LLM's tokenizer, its folder, or a config of one.
        template: Name of the prompt template, or a template.
        picture_processor: The ``PictureProcessor`` of the training, or its config.
        proposer: Finds the boxes of requests that come without; None for no boxes.
        system: System text before the first question; none, as in training, by default.
        parts: What changes the text by the boxes, as the config's ``prompt_parts``.
        **generation: Arguments of :class:`~mg_llava.models.generation.Decoding`, e.g. ``max_new_tokens=100``, and
            ``stop``, words that end an answer; greedy by default.

    Raises:
        ValueError: There is no LLM, or the tokenizer has tokens that it has no word embeddings for.

    Attributes:
        front_end: All that requests are prepared with.
        statistics: Counts of the work so far.

    Examples:
        >>> predictor = Predictor.from_pretrained("configs/mg_llava_nano_instruct.py", "work_dirs/.../iter_250.pth")
        >>> predictor.predict("picture.jpg", "Which digit is leftmost?", boxes=[[10, 20, 30, 44]]).text
        '7'
        >>> for piece in predictor.answer(Request("What is there?", "picture.jpg")):
        ...     print(piece, end="", flush=True)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: Any,
        picture_processor: Any,
        proposer: Proposer | None = None,
        system: str = "",
        parts: Sequence[Any] = (),
        **generation: Any,
    ) -> None:
        if model.llm is None:
            raise ValueError(f"{type(model).__name__} has no LLM that could answer; take a stage that has one")
        self.model = model.eval()
        ends = model.llm.generation_config.eos_token_id
        self.front_end = FrontEnd.build(tokenizer, template, picture_processor, ends, proposer, system, parts=parts)
        rows = getattr(model.llm.get_input_embeddings(), "num_embeddings", None)
        problem = None if rows is None else tokens_without_embeddings(self.front_end.tokenizer, rows)
        if problem:
            raise ValueError(problem)
        self.generation = {"max_new_tokens": 100, "do_sample": False} | generation
        self.statistics = Statistics()
        size = self.front_end.picture_processor.image_size
        if size != model.canvas_size:
            print_log(
                f"pictures are made for {size} px, the model reads {model.canvas_size}",
                logger="current",
                level=logging.WARNING,
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Config,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        pictures: Mapping[str, Any] | None = None,
        layers: bool = True,
        **kwargs: Any,
    ) -> "Predictor":
        """Load a model, from a training config and a checkpoint, a Hugging Face folder of ours, or a hub id.

        Args:
            source: A training config or its path; or such a folder, standalone or not (its code is not run); or the
                id of one on the hub, such as ``"user/model"``.
            checkpoint: With a config, what that training wrote: mmengine ``.pth`` file, DeepSpeed folder or
                safetensors file. None otherwise.
            device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda:1"``...
            pictures: Changes of the picture processor, such as ``apply_exif``.
            layers: Whether to keep the LLM's layers; without them another process has to run it.
            **kwargs: As for the class: ``proposer``, ``system``, generation arguments.

        Raises:
            FileNotFoundError: If config, folder or checkpoint do not exist.
            ValueError: If the config cannot be read or lacks a part, the checkpoint is of another kind or another
                model, or the device is not there.
        """
        *loaded, parts = load_model(source, checkpoint, device, pictures, layers)
        return cls(*loaded, **{"parts": parts, **kwargs})

    def predict(
        self,
        picture: PictureLike | Sequence[PictureLike] | None = None,
        question: str | Sequence[Any] = "",
        boxes: BoxesLike = None,
        objects: Sequence[Any] = (),
        **generation: Any,
    ) -> Answer:
        """Answer one question; arguments as in :class:`Request`, ``generation`` overrides the predictor's.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: The question is empty or too long, or boxes are malformed (see ``requests``).
        """
        return self.predict_many([Request(question, picture, boxes, objects=objects)], **generation)[0]

    def chat(
        self,
        picture: PictureLike | Sequence[PictureLike] | None = None,
        question: str = "",
        boxes: BoxesLike = None,
        history: Sequence[Any] | None = None,
        stream: bool = False,
        **generation: Any,
    ) -> Any:
        """Go on with a conversation, written as in training.

        Args:
            picture: Its pictures. Without ``<image>`` in a turn they come before the first question.
            question: The next question.
            boxes: As in :class:`Request`.
            history: The turns so far: ``("human" or "gpt", text)`` each.
            stream: Give the answer in pieces of text as they come.
            **generation: Overrides the predictor's arguments.

        Returns:
            An :class:`Answer`; with ``stream`` a :class:`StreamedAnswer`.
        """
        request = Request([*said_turns(history or ()), ("human", question)], picture, boxes)
        reply = self.answer(request, **generation)
        if stream:
            return reply
        for _ in reply:
            pass
        assert reply.whole is not None
        return reply.whole

    def batch(self, requests: Sequence[Request | Mapping[str, Any]], **options: Any) -> list[Answer]:
        """Answer many questions, given as requests or as their fields; options as for :meth:`predict_many`."""
        given = [request if isinstance(request, Request) else Request(**request) for request in requests]
        return self.predict_many(given, **options)

    def answer(self, request: Request, **generation: Any) -> "StreamedAnswer":
        """Answer one question in pieces of text as they come; arguments as for :meth:`predict`.

        A conversation goes on with a request of all its turns.
        """
        return StreamedAnswer(self.answering(generation, 1).stream(PreparedRequest(self.front_end, 0, request)))

    def predict_many(
        self,
        requests: Sequence[Request],
        batch_size: int = 8,
        progress: Progress | None = None,
        workers: int = 2,
        exact: bool = True,
        **generation: Any,
    ) -> list[Answer]:
        """Answer many questions, in batches of similar length, padded on the left.

        Args:
            requests: The questions. All texts and boxes are checked before the first answer.
            batch_size: Questions at a time.
            progress: Called after each batch.
            workers: Threads that decode and prepare the next pictures meanwhile.
            exact: As for :meth:`stream`.
            **generation: Overrides the predictor's arguments.

        Returns:
            The answers, in the order of ``requests``.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: As for :meth:`predict`; messages name the request.
        """
        groups: dict[Hashable, list[PreparedRequest]] = {}
        for number, request in enumerate(requests):
            prepared = PreparedRequest(self.front_end, number, request)
            groups.setdefault(prepared.key, []).append(prepared)
        sorted_requests = [prepared for group in groups.values() for prepared in group]
        answering = self.answering(generation, batch_size, exact)
        answers: dict[int, Answer] = {}
        for batch in self._windows(answering, sorted_requests, workers, CACHE_MB):
            for number, answer in batch:
                if isinstance(answer, Exception):
                    raise answer
                answers[number] = answer
            if progress is not None:
                progress(len(answers), len(requests))
        return [answers[number] for number in range(len(requests))]

    def stream(
        self,
        requests: Iterable[Request],
        batch_size: int = 32,
        workers: int = 2,
        cache_mb: int = CACHE_MB,
        exact: bool = True,
        **generation: Any,
    ) -> Iterator[Answered]:
        """Answer a stream of any length, batch by batch, in an order that suits the batches.

        Pictures are opened and encoded when they are due, once for all neighbors in the stream that share them
        (see ``Request.key``).

        Args:
            requests: The questions; read ahead by a window of some batches.
            batch_size: Questions at a time.
            workers: Threads that decode and prepare the next pictures meanwhile.
            cache_mb: Limit of the encoded pictures that are kept at a time, in MB.
            exact: Ask a question again alone where rounding could decide its answer, so that greedy answers in float32
                do not depend on the batches.
            **generation: Overrides the predictor's arguments.

        Yields:
            The answers of a batch with the places of their requests in the stream. Where a request cannot be answered,
            the error stands for the answer: ``PictureError``, or ``ValueError`` for a question that is empty or too
            long. Errors of a function ``boxes`` are raised.
        """
        failed: list[tuple[int, Answer | ValueError]] = []
        answering = self.answering(generation, batch_size, exact)
        for batch in self._windows(answering, self._prepared(requests, failed), workers, cache_mb):
            yield [*failed, *batch]
            failed.clear()
        if failed:
            yield failed

    def _prepared(
        self, requests: Iterable[Request], failed: list[tuple[int, Answer | ValueError]]
    ) -> Iterator[PreparedRequest]:
        for number, request in enumerate(requests):
            try:
                yield PreparedRequest(self.front_end, number, request)
            except ValueError as error:
                failed.append((number, error))

    def answering(self, generation: dict[str, Any], batch_size: int, exact: bool = False) -> Answering:
        """How requests are answered, with the predictor's arguments of generation and further ones."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        settings = {**self.generation, **generation}
        return Answering(self.model, self.front_end, settings, batch_size, exact and self._is_fine, self.statistics)

    @cached_property
    def _is_fine(self) -> bool:
        """Whether all of the model computes in float32 or finer; many parameters take a while to look at."""
        floats = [parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()]
        return all(dtype in (torch.float32, torch.float64) for dtype in floats)

    def _windows(
        self, answering: Answering, requests: Iterable[PreparedRequest], workers: int, cache_mb: int
    ) -> Iterator[Answered]:
        room = max(1, int(cache_mb * 1e6 / answering.picture_bytes))
        stream = windows(requests, answering.batch_size * WINDOW_BATCHES, room)
        for window in loaded_windows(stream, workers, min(4 * answering.batch_size, room)):
            yield from answering.window(window)


class StreamedAnswer:
    """Pieces of an answer's text as they come, which together are its text; closing the iterator stops the work.

    Attributes:
        whole: The answer, when all pieces have come.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self.whole: Answer | None = None

    def __iter__(self) -> Generator[str]:
        """The pieces; empty ones stand for steps that settled no text."""
        self.whole = yield from self._pieces
