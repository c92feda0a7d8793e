"""The routes of the page: its files, boards, questions, and what lies behind an answer.

Pictures are kept in memory under names that cannot be guessed, no request names a path, and the page loads nothing
from elsewhere.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mg_llava.data.pictures.files import open_picture
from mg_llava.inference import requests
from mg_llava.inference.attribution import attribute
from mg_llava.inference.engine import Engine, Event, Job
from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits
from mg_llava.inference.serving.pictures import decode_pictures
from mg_llava.inference.serving.places import Load, Place, Stream
from mg_llava.inference.serving.question import check_request_texts
from mg_llava.inference.serving.waiting import (
    ClientLeft,
    event_of,
    prepared,
    read_body,
    refusal,
    too_late,
    wait_for,
)
from mg_llava.inference.web.boards import Board, Boards, Side
from mg_llava.inference.web.fields import AskBody, BoxesBody, SideBody, parse
from mg_llava.inference.web.guard import Guard
from mg_llava.inference.web.views import contributions, model_input, picture_file

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/boxes.js": ("boxes.js", "text/javascript"),
}
"""Files of the page by their paths."""

_THUMBNAIL = 160
"""Longer side of an example's picture in the list, in pixels."""

_Result = TypeVar("_Result")
_Handler = Callable[[Request, bytes, Place], Awaitable[Response]]


class PageApp:
    """The handlers.

    Args:
        engine: Answers.
        title: Of the page.
        examples: Pictures to choose from.
        limits: Of requests; those of a chat server go for pictures and texts here, too.
    """

    def __init__(
        self, engine: Engine, title: str = "", examples: Sequence[Path] = (), limits: RequestLimits | None = None
    ) -> None:
        self.engine, self.title, self.examples = engine, title, list(examples)
        self.limits = limits or RequestLimits()
        self.load, self.boards = Load(), Boards()
        self._pool = ThreadPoolExecutor(2, "requests")
        page = files("mg_llava.inference.web").joinpath("page")
        self._files = {path: page.joinpath(name).read_bytes() for path, (name, _) in _PAGE.items()}

    def build(self, is_home: bool = True) -> Guard:
        """The application; its start and end are those of the engine.

        Args:
            is_home: Whether this machine alone may ask, by one of its own names.
        """
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        for path in _PAGE:
            app.add_api_route(path, self.file, response_model=None)
        app.add_api_route("/about", self.about, response_model=None)
        app.add_api_route("/examples/{number}", self.example, response_model=None)
        app.add_api_route("/boards/{key}/picture", self.picture, response_model=None)
        handlers: dict[str, tuple[str, _Handler]] = {
            "/boards": ("POST", self.open),
            "/boards/{key}/boxes": ("PUT", self.set_boxes),
            "/boards/{key}/ask": ("POST", self.ask),
            "/boards/{key}/reset": ("POST", self.reset),
            "/boards/{key}/input": ("POST", self.input),
            "/boards/{key}/contributions": ("POST", self.contributions),
        }
        for path, (method, handler) in handlers.items():
            app.add_api_route(path, self._held(handler), methods=[method], response_model=None)
        for kind in (RefusedRequest, HTTPException, Exception):
            app.add_exception_handler(kind, self._refuse)
        return Guard(app, is_home)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        with self.engine, self._pool:
            yield

    # -- what is only shown ---------------------------------------------------------------------------------------

    async def file(self, request: Request) -> Response:
        """A file of the page."""
        path = request.url.path
        return Response(self._files[path], media_type=f"{_PAGE[path][1]}; charset=utf-8")

    async def about(self) -> Response:
        """The title, the names of the examples, and limits that a browser can look at before it sends."""
        limits = {"bytes": self.limits.body, "boxes": self.limits.boxes}
        finds = self.engine.predictor.front_end.proposer is not None
        names = [path.name for path in self.examples]
        return JSONResponse({"title": self.title, "examples": names, "finds": finds, "limits": limits})

    async def example(self, request: Request, number: str) -> Response:
        """A small picture of an example."""

        def work() -> bytes:
            return picture_file(open_picture(self._example(number), max_pixels=self.limits.pixels), _THUMBNAIL)

        return Response(await self._in_pool(request, work), media_type="image/png")

    async def picture(self, request: Request, key: str) -> Response:
        """The picture of a board."""
        return Response(
            await self._in_pool(request, partial(picture_file, self.boards[key].image)), media_type="image/png"
        )

    # -- boards ---------------------------------------------------------------------------------------------------

    async def open(self, request: Request, data: bytes, place: Place) -> Response:
        """A new board for the bytes of a picture, or for an example."""
        example = request.query_params.get("example")

        def work() -> Board:
            if example is not None:
                image = open_picture(self._example(example), max_pixels=self.limits.pixels)
            else:
                (image,) = decode_pictures([("picture", data)], self.limits)
            return Board.of(image, self.engine.predictor.front_end)

        return JSONResponse(self.boards.add(await self._in_pool(request, work)).to_dict())

    async def set_boxes(self, request: Request, data: bytes, place: Place) -> Response:
        """Take other boxes."""
        board, body = self._board(request), parse(BoxesBody, data, self.limits)
        if len(body.boxes) > self.limits.boxes:
            raise RefusedRequest(f"{len(body.boxes)} boxes; at most {self.limits.boxes} are allowed", "boxes")
        check_request_texts([box.label for box in body.boxes], self.limits)
        board.set_boxes([box.board_box() for box in body.boxes])
        return JSONResponse(board.to_dict())

    async def reset(self, request: Request, data: bytes, place: Place) -> Response:
        """Begin the conversations anew."""
        self._board(request).reset()
        return JSONResponse({})

    async def input(self, request: Request, data: bytes, place: Place) -> Response:
        """What the model receives with a question."""
        board, body = self._board(request), parse(SideBody, data, self.limits)
        check_request_texts([body.question], self.limits)
        asked = board.request(body.question, body.side)
        return JSONResponse(await self._in_pool(request, partial(model_input, self.engine.predictor, asked)))

    async def contributions(self, request: Request, data: bytes, place: Place) -> Response:
        """What contributed to the last answer of a conversation."""
        board, body = self._board(request), parse(SideBody, data, self.limits)
        if body.side not in board.asked:
            raise RefusedRequest("there is no answer yet; ask a question first", "side")
        asked, answer = board.asked[body.side]
        future = self.engine.call(partial(attribute, self.engine.predictor, asked, answer))
        found = await self._wait(request, prepared(asyncio.wrap_future(future)))
        return JSONResponse(contributions(found, answer))

    # -- questions ------------------------------------------------------------------------------------------------

    async def ask(self, request: Request, data: bytes, place: Place) -> Response:
        """Answer a question in one or both conversations, in pieces."""
        board, body = self._board(request), parse(AskBody, data, self.limits)
        check_request_texts([body.question], self.limits)
        board.begin()
        place.leaving.append(board.end)
        asked = {side: board.request(body.question, side) for side in body.sides}
        news: asyncio.Queue[tuple[Side, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(side: Side, event: Event) -> None:
            loop.call_soon_threadsafe(news.put_nowait, (side, event))

        def work() -> list[Job]:
            prepare = partial(self.engine.prepare, generation={}, streams=True)
            return [prepare(asked[side], tell=partial(tell, side)) for side in asked]

        for job in await self._in_pool(request, work):
            place.leaving.append(job.leave)
            self.engine.submit(job)
        return Stream(self._pieces(board, asked, news), place)

    async def _pieces(
        self, board: Board, asked: Mapping[Side, requests.Request], news: "asyncio.Queue[tuple[Side, Event]]"
    ) -> AsyncIterator[dict[str, str]]:
        """The events of a stream: pieces of text, and an answer or a message for each conversation."""
        open_sides, due = set(asked), time.monotonic() + self.limits.seconds
        while open_sides:
            try:
                side, event = await asyncio.wait_for(news.get(), due - time.monotonic())
            except asyncio.TimeoutError:
                for side in sorted(open_sides):
                    yield event_of({"side": side, "error": str(too_late(self.limits))})
                return
            if event.piece:
                yield event_of({"side": side, "piece": event.piece})
            if event.is_last:
                open_sides.remove(side)
            if event.answer is not None:
                board.take(side, asked[side], event.answer)
                yield event_of({"side": side, "answer": event.answer.text, "tokens": event.answer.prompt_tokens})
            elif event.error is not None:
                yield event_of({"side": side, "error": str(refusal(event.error))})

    # -- any request ----------------------------------------------------------------------------------------------

    def _held(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """A route that holds a place, and what its request holds, until it is answered."""

        async def route(request: Request) -> Response:
            place, response = Place(self.load, self.limits), None
            try:
                response = await handler(request, await read_body(request, place), place)
            except (ClientLeft, ClientDisconnect):
                response = Response(status_code=499)
            finally:
                if not isinstance(response, Stream):
                    place.leave()
            return response

        return route

    async def _in_pool(self, request: Request, work: Callable[[], _Result]) -> _Result:
        return await self._wait(request, prepared(asyncio.get_running_loop().run_in_executor(self._pool, work)))

    async def _wait(self, request: Request, work: Any) -> Any:
        return await wait_for(request, work, time.monotonic() + self.limits.seconds, self.limits)

    def _board(self, request: Request) -> Board:
        return self.boards[request.path_params["key"]]

    def _example(self, number: str) -> Path:
        if not (number.isascii() and number.isdecimal() and int(number[:6]) < len(self.examples)):
            raise RefusedRequest(f"there are {len(self.examples)} examples", "example", "not_found", 404)
        return self.examples[int(number[:6])]

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Any fault as a message."""
        if isinstance(error, HTTPException):
            error = RefusedRequest(f"{request.url.path[:80]} is unknown", None, "unknown_url", error.status_code)
        refused = refusal(error)
        return JSONResponse(refused.body(), refused.status)
