"""A stock ``vllm serve LLM --enable-prompt-embeds``: prompt embeddings go there, ids come back.

Faults of that side are refusals in OpenAI's form; what it says itself is in the log, without its key. L positions of
a prompt, D hidden size of the LLM.
"""

import base64
import contextlib
import io
import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import torch
from mmengine.logging import print_log
from torch import Tensor

from mg_llava.inference.reply import ScoredToken
from mg_llava.inference.serving.errors import RefusedRequest
from mg_llava.models.generation import Decoding
from mg_llava.work.json_text import parse_json

_CONNECT = 5.0
"""Seconds until a connection stands."""
_SHOWN = 300


class FarTokens(NamedTuple):
    """New ids of an answer; ``scored`` is parallel where log-probabilities were asked for, ``finish`` ends it."""

    ids: list[int]
    scored: list[ScoredToken]
    finish: str | None


@dataclass(frozen=True)
class FarSide:
    """The server of the language model.

    Attributes:
        url: Its address up to ``/v1``.
        key: What it wants as bearer token; empty for none.
        seconds: That it may be silent.
        model: Name of the model there.
        context: Positions that it has room for; None where it does not say.
    """

    url: str
    key: str = field(default="", repr=False)
    seconds: float = 600.0
    model: str = ""
    context: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of httpx's clients: no proxy, no redirection, nothing from the environment."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(self.seconds, connect=_CONNECT, pool=None)
        return {"base_url": self.url + "/", "headers": headers, "timeout": timeout, "trust_env": False}

    def connect(self, prompt: Tensor) -> "FarSide":
        """Look whether it is there and takes prompt embeddings, with a prompt ``(L, D)``.

        Raises:
            OSError: It cannot be reached.
            ValueError: It is no such server, serves another LLM or refuses the key.
        """
        with httpx.Client(**self.options) as client:
            try:
                listed = _entries(_checked(client.get("models")))
                found = replace(self, model=str(listed[0]["id"]), context=listed[0].get("max_model_len"))
                given = {**found.body(prompt, Decoding(), 1), "stream": False}
                (choice,) = _checked(client.post("completions", json=given))["choices"]
                (_,) = choice["token_ids"]
            except httpx.HTTPError as error:
                raise OSError(f"{self.url} cannot be reached ({type(error).__name__}: {error})") from error
            except (KeyError, TypeError, IndexError, ValueError) as error:
                detail = self._without_key(str(error) or type(error).__name__)
                advice = "start it with `vllm serve LLM_FOLDER --enable-prompt-embeds`, vLLM 0.11 or newer"
                raise ValueError(f"{self.url} gives no ids for prompt embeddings ({detail}); {advice}") from error
        return found

    def body(self, prompt: Tensor, decoding: Decoding, limit: int, top: int | None = None) -> dict[str, Any]:
        """A request of vLLM's completions.

        Args:
            prompt: ``(L, D)``, embeddings in a dtype of the LLM.
            decoding: How ids are chosen, and which end an answer; no other ones do.
            limit: Most new ids.
            top: Number of likeliest ids beside each; None for no log-probabilities.
        """
        file = io.BytesIO()
        torch.save(prompt.detach().cpu().clone(), file)
        given = {
            "model": self.model,
            "prompt_embeds": base64.b64encode(file.getvalue()).decode(),
            "max_tokens": limit,
            "temperature": decoding.temperature if decoding.do_sample else 0.0,
            "repetition_penalty": decoding.repetition_penalty,
            "stop_token_ids": sorted(decoding.ends),
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        if decoding.do_sample:
            given |= {"top_p": decoding.top_p, "top_k": decoding.top_k, "seed": decoding.seed}
        if top is not None:
            given |= {"logprobs": top, "return_tokens_as_token_ids": True}
        return given

    async def stream(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> AsyncIterator[FarTokens]:
        """The ids of an answer as they come; closing the iterator ends the work there.

        Raises:
            RefusedRequest: It cannot be reached, answers with an error, in another form or not in time.
        """
        with self._refusals():
            async with client.stream("POST", "completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _status(response)
                async for line in response.aiter_lines():
                    kind, _, data = line.partition(":")
                    if kind == "data" and data.strip() == "[DONE]":
                        return
                    if kind == "data" and (new := _read_chunk(data, body.get("logprobs"))) is not None:
                        yield new

    @contextlib.contextmanager
    def _refusals(self) -> Any:
        try:
            yield
        except httpx.TimeoutException as error:
            refused, code, status, detail = "did not answer in time", "timeout", 504, type(error).__name__
        except httpx.ConnectError as error:
            refused, code, status, detail = "cannot be reached", "engine_unavailable", 502, str(error)
        except httpx.HTTPError as error:
            refused, code, status, detail = "broke off", "engine_error", 502, f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            refused, code, status, detail = "failed", "engine_error", 502, f"{type(error).__name__}: {error}"
        else:
            return
        print_log(f"{self.url} {refused}: {self._without_key(detail)}", logger="current", level=logging.ERROR)
        raise RefusedRequest(f"the language model's server {refused}", None, code, status)

    def _without_key(self, text: str) -> str:
        return (text.replace(self.key, "***") if self.key else text)[:_SHOWN]


def check_url(url: str, hosts: Collection[str]) -> str:
    """The address up to ``/v1`` of a server that may be asked: of this machine, or of a host that was named.

    Raises:
        ValueError: It is another one, or no plain address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"this is no address of a server ({error}); such as http://127.0.0.1:8000/v1") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address has no name or password in it; give the key by the environment variable")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no address of a server; such as http://127.0.0.1:8000/v1")
    if host not in hosts and not _is_loopback(host):
        raise ValueError(f"{host} is not this machine; --engine-host {host} allows it")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _entries(content: Any) -> list[Any]:
    if not content["data"]:
        raise ValueError("it serves no model")
    return content["data"]


def _checked(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise _status(response)
    return parse_json(response.content)


def _status(response: httpx.Response) -> ValueError:
    """An answer that is an error, with the words of vLLM."""
    text = response.text
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = _message(json.loads(text)) or text
    return ValueError(f"status {response.status_code}: {text}")


def _message(content: Any) -> str | None:
    error = content.get("error", content)
    return error.get("message") if isinstance(error, dict) else None


def _read_chunk(data: str, top: int | None) -> FarTokens | None:
    """News of an event; None where there are none.

    Raises:
        ValueError: It is an error, or says nothing about ids.
    """
    content = parse_json(data)
    if content.get("error"):
        raise ValueError(_message(content) or "an error without a message")
    if not content["choices"]:
        return None  # usage
    choice = content["choices"][0]
    ids, finish = choice.get("token_ids"), choice.get("finish_reason")
    if ids is None and (choice.get("text") or not finish):
        raise ValueError("there are no token_ids; vLLM 0.11 or newer gives them")
    ids = [int(token) for token in ids or ()]
    if top is None:
        return FarTokens(ids, [], finish)
    given = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
    likely = given["top_logprobs"] or [None] * len(ids)
    pairs = zip(ids, given["token_logprobs"], likely, strict=True)
    return FarTokens(ids, [ScoredToken(token, float(own), _likeliest(one, top)) for token, own, one in pairs], finish)


def _likeliest(given: Mapping[str, float] | None, top: int) -> list[tuple[int, float]]:
    pairs = [(int(name.removeprefix("token_id:")), float(value)) for name, value in (given or {}).items()]
    return sorted(pairs, key=lambda pair: -pair[1])[:top]
