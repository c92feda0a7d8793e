"""The answer to one request while it comes, id by id.

Shapes: V vocabulary of the LLM.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from mg_llava.data.pictures.processor import ProcessedPicture
from mg_llava.data.text.stopping import Stops, TextStream
from mg_llava.inference.encoding import EncodedRequest
from mg_llava.inference.requests import Answer, SeenPicture
from mg_llava.models.generation import Ended


class ScoredToken(NamedTuple):
    """An id with its log-probability, and the likeliest ones of its place with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Reply:
    """An answer that grows.

    Args:
        one: What it answers.
        stops: Where it ends.
        limit: Most new ids.
        top: Number of likeliest ids to note beside each new one; None for no log-probabilities.
        is_gone: Whether nobody waits for it any more; it then ends with the next id.

    Attributes:
        ids: New ids, without an end token.
        ended: Why it ended.
        scored: A token for each id, where log-probabilities are wanted.
    """

    def __init__(
        self,
        one: EncodedRequest,
        stops: Stops,
        limit: int,
        top: int | None = None,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.one, self.stops, self.limit, self.top, self.is_gone = one, stops, limit, top, is_gone
        self.ids: list[int] = []
        self.ended: Ended = ""
        self.scored: list[ScoredToken] = []
        self._text = TextStream(stops)

    @property
    def is_done(self) -> bool:
        """Whether nothing follows."""
        return self.ended not in ("", "close")

    def ends_with(self, ids: Sequence[int]) -> bool:
        """Whether it ends with these new ids, for another reason than an end token."""
        return self.is_gone() or self.stops.at_word(ids)

    def push(self, token: int, ended: Ended, scores: Tensor) -> None:
        """Take a new id, chosen by ``(V,)`` logits."""
        scored = None
        if self.top is not None:
            logprobs = scores.log_softmax(dim=-1)
            values, ids = logprobs.topk(min(self.top, len(logprobs)))
            top = list(zip(ids.tolist(), values.tolist(), strict=True))
            scored = ScoredToken(token, logprobs[token].item(), top)
        self.take(token, ended, scored)

    def take(self, token: int, ended: Ended, scored: ScoredToken | None) -> None:
        """Take a new id, with its log-probability where that is wanted."""
        self.ended = ended
        if ended in ("end", "close"):
            return
        self.ids.append(token)
        if scored is not None:
            self.scored.append(scored)

    def restart(self, one: EncodedRequest) -> None:
        """Begin again; what comes begins with the ids that there are."""
        self.one, self.ids, self.ended, self.scored = one, [], "", []

    def piece(self) -> str:
        """The text that is settled and was not given before; all pieces together are the answer's text."""
        text = self._text.push(self.ids[len(self._text.ids) :])
        return text + self._text.finish() if self.is_done else text

    def answer(self) -> Answer:
        """The answer, when it is done."""
        text, _ = self.stops.cut(self.stops.read(self.ids))
        seen = tuple(_seen(picture) for picture in self.one.pictures if picture.region is None)
        objects = tuple(picture.region for picture in self.one.pictures if picture.region is not None)
        name = self.one.prepared.request.id
        return Answer(text, tuple(self.ids), seen, self.ended == "limit", name, self.one.length, objects)


def _seen(picture: ProcessedPicture) -> SeenPicture:
    if picture.is_empty:
        return SeenPicture(picture.canvas, picture.canvas.to_original(picture.boxes.double().numpy()[:0]))
    boxes = picture.canvas.to_original(picture.boxes.double().numpy())
    return SeenPicture(picture.canvas, boxes, tuple(picture.labels), tuple(picture.scores))
