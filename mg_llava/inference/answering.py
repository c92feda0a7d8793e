"""Answers a window of requests: encodes its pictures once, then generates batch by batch.

Shapes: B rows of a batch, T text ids, N pictures, P visual tokens of a picture, D hidden size of the LLM, L
positions of a prompt.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.data.pictures.files import PictureError
from mg_llava.inference.batching import DecodedPictures, Loaded, PictureGroup, PreparedRequest
from mg_llava.inference.encoding import EncodedRequest, RequestEncoder, Statistics
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.reply import Reply
from mg_llava.inference.requests import Answer
from mg_llava.models.generation import (
    LOGIT_MARGIN,
    Decoding,
    Prefixes,
    Prompt,
    evaluating,
    generate,
    read_prefixes,
)
from mg_llava.models.interfaces import Seeing
from mg_llava.tokens import PAD_TOKEN_ID

Answered = list[tuple[int, Answer | ValueError]]
"""Numbers of requests with their answers, or why there is none."""

MOST_PICTURES = 16
"""Pictures that are encoded at a time, at most."""

_Item = TypeVar("_Item")


_Rows = list[EncodedRequest]


class Answering:
    """How requests are answered with one set of arguments of generation.

    Args:
        model: The system.
        front_end: Of the requests.
        generation: Arguments of :class:`~mg_llava.models.generation.Decoding`; and ``stop``, further stop words.
        batch_size: Questions at a time.
        exact: Generate an answer once more alone where rounding could decide it, so that greedy answers do not depend
            on the batch; for models in float32.
        statistics: Counted here.
    """

    def __init__(
        self,
        model: Any,
        front_end: FrontEnd,
        generation: dict[str, Any],
        batch_size: int,
        exact: bool,
        statistics: Statistics,
    ) -> None:
        settings = {"eos_token_id": front_end.stops.ids, **generation}
        self.model = model
        self.front_end = front_end
        self.stops = front_end.stops.also(settings.pop("stop", ()))
        self.decoding = Decoding.of(model.llm, settings)
        self.batch_size = batch_size
        self.statistics = statistics
        self.margin = LOGIT_MARGIN if exact and not self.decoding.do_sample else 0.0
        self.encoder = RequestEncoder(model, statistics, keeps_pixels=self.margin > 0)
        self.context: int | None = getattr(model.llm.config, "max_position_embeddings", None)

    @property
    def picture_bytes(self) -> int:
        """Most bytes that an encoded picture takes."""
        prompts = getattr(self.model.adapter, "prompts", 0)  # what a picture adds to the LLM's layers
        processor = self.front_end.picture_processor
        boxes = max(one.max_boxes or 100 for one in (processor, processor.of_frames))
        tokens = max(1, prompts + self.model.tokens_of(1, boxes))
        width = self.model.llm.get_input_embeddings().embedding_dim
        return tokens * width * self.model.connector.element_size()

    def window(self, groups: Iterable[Loaded]) -> Iterator[Answered]:
        """Answer the requests of a window; long rows first, so that memory runs out early or never.

        The model is in evaluation mode while it works, and as it was between two batches.
        """
        answers = self._window(groups)
        while True:
            with evaluating(self.model):
                batch = next(answers, None)
            if batch is None:
                return
            yield batch

    def _window(self, groups: Iterable[Loaded]) -> Iterator[Answered]:
        failed: Answered = []
        ready = list(self.encoded(groups, failed))
        if failed:
            yield failed
        plain, shared = self._sorted(ready)
        for batch in plain:
            yield self._answers(batch, self._prompt(batch, [one.prepared.ids for one in batch]))
        for block in shared:
            yield from self._after_prefixes(block)

    def stream(self, prepared: PreparedRequest) -> Generator[str, None, Answer]:
        """Answer one request in pieces of text.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: It is too long.
        """
        group = PictureGroup([prepared])
        failed: Answered = []
        with evaluating(self.model):
            (*encoded,) = self.encoded([(group, group.load())], failed)
            for _, error in failed:
                raise error  # type: ignore[misc]
            reply = self.new_reply(encoded[0])
            for _ in self.run([reply]):
                yield reply.piece()
        return reply.answer()

    @torch.no_grad()
    def run(self, replies: Sequence[Reply], prompt: Prompt | None = None) -> Iterator[None]:
        """Answer rows together, one step at a time; what rounding could decide is answered once more, alone.

        Args:
            replies: Their rows go on with the step that each yield stands for. They may be of other instances of the
                same model and ``decoding``, but for its limit.
            prompt: What the LLM reads of them; None to make it.
        """
        batch = [reply.one for reply in replies]
        is_alone = len(batch) == 1 and batch[0].alone and (prompt is None or prompt.cache is None)
        prompt = prompt or self._prompt(batch, [one.prepared.ids for one in batch])
        yield from self._steps(replies, prompt, 0.0 if is_alone else self.margin)
        for reply in replies:
            if reply.ended == "close":
                self.statistics.alone += 1
                reply.restart(self.encoder.alone(reply.one))
                prompt = self._prompt([reply.one], [reply.one.prepared.ids])
                yield from self._steps([reply], prompt, 0.0)

    # -- pictures -----------------------------------------------------------------------------------------------

    def encoded(self, groups: Iterable[Loaded], failed: Answered) -> Iterator[EncodedRequest]:
        """Requests with encoded pictures; what cannot be read or is too long is added to ``failed``."""
        waiting: list[tuple[PictureGroup, DecodedPictures]] = []
        for group, decoded in groups:
            if isinstance(decoded, PictureError):
                failed += [(request.number, decoded) for request in group.requests]
                continue
            waiting.append((group, decoded))
            if sum(len(known.pictures) for _, known in waiting) >= min(self.batch_size, MOST_PICTURES):
                yield from self._short_ones(self.encoder.encode(waiting), failed)
                waiting = []
        yield from self._short_ones(self.encoder.encode(waiting), failed)

    # -- text ---------------------------------------------------------------------------------------------------

    def _short_ones(self, encoded: Iterable[EncodedRequest], failed: Answered) -> Iterator[EncodedRequest]:
        for one in encoded:
            if self.context is None or one.length < self.context:
                yield one
                continue
            problem = (
                f"{one.prepared.owner}: question, picture and box tokens are {one.length} long, the LLM's context is "
                f"{self.context}; shorten the question or give fewer boxes"
            )
            failed.append((one.prepared.number, ValueError(problem)))

    def _limit(self, one: EncodedRequest) -> int:
        """Number of tokens that the answer has room for."""
        limit = self.decoding.limit
        return limit if self.context is None else min(limit, self.context - one.length)

    def _sorted(self, ready: Sequence[EncodedRequest]) -> tuple[list[_Rows], list[_Rows]]:
        """Batches of rows of similar length, and blocks of rows that share prefixes of similar length.

        A block has one prefix for each two rows of a batch: what the LLM keeps of its prefixes is half of what it
        keeps of a batch.
        """
        can_share = self.batch_size > 1 and not getattr(self.model, "reads_question", False)
        groups: dict[Hashable, list[EncodedRequest]] = {}
        for one in ready:
            groups.setdefault(one.prefix if can_share else None, []).append(one)
        single = [one for key, rows in groups.items() if key is None or len(rows) == 1 for one in rows]
        single.sort(key=lambda one: (-one.length, one.prepared.number))
        several = [rows for key, rows in groups.items() if key is not None and len(rows) > 1]
        several.sort(key=lambda rows: -max(one.length for one in rows))
        blocks = _chunks(several, (self.batch_size + 1) // 2)
        return _chunks(single, self.batch_size), [[one for rows in block for one in rows] for block in blocks]

    def _after_prefixes(self, block: Sequence[EncodedRequest]) -> Iterator[Answered]:
        """Answer a block batch by batch; the LLM reads its prefixes once."""
        numbers, prefixes = self._read_prefixes(block)
        for batch in self._by_rest(block):
            yield self._answers(batch, self._after(prefixes, [numbers[one.prefix] for one in batch], batch))

    def _read_prefixes(self, block: Sequence[EncodedRequest]) -> tuple[dict[Hashable, int], Prefixes]:
        """What the LLM keeps of the prefixes of a block, and the number of each."""
        starts = list({one.prefix: one for one in reversed(block)}.values())
        prompt = self._prompt(starts, [one.prepared.ids[: one.cut] for one in starts])
        with self.model.condition([one.seeing for one in starts]):
            prefixes = read_prefixes(self.model.llm, prompt)
        self.statistics.prefixes += len(starts)
        return {one.prefix: number for number, one in enumerate(starts)}, prefixes

    @torch.no_grad()
    def _after(self, prefixes: Prefixes, numbers: Sequence[int], batch: Sequence[EncodedRequest]) -> Prompt:
        """What the LLM reads of a batch after its prefixes."""
        texts = _pad([one.prepared.ids[one.cut :] for one in batch], left=True)
        data = self.model.data_preprocessor({"rows": torch.tensor(numbers), **texts}, False)
        embeds = self.model.llm.get_input_embeddings()(data["input_ids"])
        return prefixes.before(data["rows"], embeds, data["attention_mask"])

    def shared_prompt(self, batch: Sequence[EncodedRequest]) -> Prompt | None:
        """What the LLM reads of rows, of which some go on after one prefix; None where none do, or one has none."""
        kinds = {one.prefix for one in batch}
        if None in kinds or len(kinds) == len(batch):
            return None
        numbers, prefixes = self._read_prefixes(batch)
        return self._after(prefixes, [numbers[one.prefix] for one in batch], batch)

    def _by_rest(self, block: Sequence[EncodedRequest]) -> Iterator[list[EncodedRequest]]:
        """Batches of rows by length after the prefix, long ones first.

        Where rows become half as long, a batch that is a quarter full ends: padding would cost more than it saves.
        """
        batch: list[EncodedRequest] = []
        for one in sorted(block, key=lambda one: -one.rest):
            is_short = 4 * len(batch) >= self.batch_size and 2 * one.rest <= batch[0].rest
            if is_short or len(batch) == self.batch_size:
                yield batch
                batch = []
            batch.append(one)
        yield batch

    @torch.no_grad()
    def _prompt(self, batch: Sequence[EncodedRequest], ids: Sequence[Sequence[int]]) -> Prompt:
        """What the LLM reads: rows of ids with the encoded pictures of ``batch``, on the device."""
        data = self.model.data_preprocessor(_pad(ids), False)
        return self.model.prompt(data, _seeing(batch))

    def _steps(self, replies: Sequence[Reply], prompt: Prompt, margin: float) -> Iterator[None]:
        """The steps of a batch, counted."""
        self.statistics.rows += len(replies)

        def condition(rows: list[int]) -> AbstractContextManager[Any]:
            return self.model.condition([replies[row].one.seeing for row in rows])

        def stop(row: int, ids: list[int]) -> bool:
            return replies[row].ends_with(ids)

        limits = [reply.limit for reply in replies]
        for step in generate(self.model.llm, prompt, self.decoding, limits, stop, margin, condition):
            self.statistics.steps += 1
            for row, token, ended, scores in zip(step.rows, step.ids, step.ended, step.scores, strict=True):
                replies[row].push(token, ended, scores)
            yield

    def embeds(self, one: EncodedRequest) -> Tensor:
        """``(L, D)``, what the LLM reads of a request."""
        return self._prompt([one], [one.prepared.ids]).embeds[0]

    def new_reply(self, one: EncodedRequest, **options: Any) -> Reply:
        """The answer to a request, with nothing in it yet; ``options`` as for :class:`Reply`."""
        return Reply(one, self.stops, self._limit(one), **options)

    def _answers(self, batch: Sequence[EncodedRequest], prompt: Prompt) -> Answered:
        replies = [self.new_reply(one) for one in batch]
        for _ in self.run(replies, prompt):
            pass
        return [(reply.one.prepared.number, reply.answer()) for reply in replies]


def _seeing(batch: Sequence[EncodedRequest]) -> Seeing:
    """The segments of all placeholders of a batch."""
    return [segments for one in batch for segments in one.seeing]


def _chunks(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _pad(ids: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` (B, T) and ``attention_mask`` (B, T)."""
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in ids]
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(
        [row.flip(0) for row in rows] if left else rows, batch_first=True, padding_value=PAD_TOKEN_ID
    )
    mask = torch.arange(input_ids.shape[1])[None] < lengths[:, None]
    if left:
        input_ids, mask = input_ids.flip(1), mask.flip(1)
    return {"input_ids": input_ids, "attention_mask": mask}
