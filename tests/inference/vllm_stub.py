"""A stand-in for ``vllm serve LLM --enable-prompt-embeds``: checks what it gets, goes on with transformers."""

import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from torch import Tensor
from transformers import AutoModelForCausalLM

KEY = "far-secret"


@dataclass
class VLLMStub:
    """``behave`` changes what it does: status, drop, error, silent, slow, text."""

    llm: Any
    behave: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/models", self.models, response_model=None)
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        return app

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "Unauthorized", "type": "x", "code": 401}}, 401)
        return JSONResponse({"object": "list", "data": [{"id": "the-llm", "object": "model", "max_model_len": 300}]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.behave == "status":
            return JSONResponse({"error": {"message": f"out of memory {KEY}", "code": 500}}, 500)
        if body.get("prompt") is not None:  # a second prompt, in vLLM 0.32
            return JSONResponse({"error": {"message": "The decoder prompt cannot be empty", "code": 400}}, 400)
        embeds = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True)), weights_only=True)
        config = self.llm.config
        if embeds.dim() != 2 or embeds.shape[1] != config.hidden_size or embeds.dtype != self.llm.dtype:
            return JSONResponse({"error": {"message": "wrong prompt_embeds", "code": 400}}, 400)
        assert body["model"] == "the-llm" and body["ignore_eos"] and body["return_token_ids"]
        if not body["stream"]:
            ids = [token for token, _ in self.ids(embeds, body)]
            choice = {"index": 0, "text": "", "finish_reason": "length", "token_ids": ids}
            return JSONResponse({"object": "text_completion", "choices": [choice]})
        return StreamingResponse(self.events(request, embeds, body), media_type="text/event-stream")

    @torch.no_grad()
    def ids(self, embeds: Tensor, body: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Greedy ids with log-probabilities; a stop token is the last one."""
        ends, cache, given = set(body["stop_token_ids"]), None, embeds[None]
        for _ in range(body["max_tokens"]):
            output = self.llm(inputs_embeds=given, past_key_values=cache, use_cache=True)
            cache, scores = output.past_key_values, output.logits[0, -1].log_softmax(dim=-1)
            self.steps += 1
            token = int(scores.argmax())
            yield token, scores
            if token in ends:
                return
            given = self.llm.get_input_embeddings()(torch.tensor([[token]]))

    async def events(self, request: Request, embeds: Tensor, body: dict[str, Any]) -> AsyncIterator[str]:
        count = 0
        for token, scores in self.ids(embeds, body):
            count += 1
            if self.behave == "silent":
                while not self.goes_on.wait(0.01) and not await request.is_disconnected():
                    pass
            if count > 3 and self.behave == "slow":
                while not await request.is_disconnected():
                    pass
                self.left.set()
                return
            if count == 3 and self.behave == "drop":
                return
            if count == 3 and self.behave == "error":
                yield event({"error": {"message": f"the engine died {KEY}", "code": 500}})
                break
            done = token in body["stop_token_ids"] or count == body["max_tokens"]
            finish = None if not done else "stop" if token in body["stop_token_ids"] else "length"
            choice: dict[str, Any] = {"index": 0, "text": "x", "logprobs": None, "finish_reason": finish}
            if self.behave != "text":
                choice["token_ids"] = [token]
            if body.get("logprobs") is not None:
                best = scores.topk(max(1, body["logprobs"]))
                top = {f"token_id:{k}": v for k, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
                choice["logprobs"] = {"token_logprobs": [scores[token].item()], "top_logprobs": [top]}
            yield event({"object": "text_completion", "choices": [choice]})
        yield "data: [DONE]\n\n"


def event(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


@contextmanager
def vllm_stub(folder: str) -> Iterator[VLLMStub]:
    stub = VLLMStub(AutoModelForCausalLM.from_pretrained(folder).eval())
    server = uvicorn.Server(uvicorn.Config(stub.app(), port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    stub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        stub.goes_on.set()
        server.should_exit = True
        thread.join()
