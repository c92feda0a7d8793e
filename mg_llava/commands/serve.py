"""Serve a trained model behind OpenAI's chat-completions interface.

Any client of such an endpoint can then use it, lmms-eval and VLMEvalKit among them. Pictures come as data: URLs in
base64, or from hosts that --allow-host names; their image_url may have "boxes": [[x1, y1, x2, y2], ...] in pixels of
the picture. With <video> in a message's text its pictures are the frames of one video. Needs the extra "serve".

With --engine vllm=URL a stock vLLM runs the language model, and this process sees to pictures and boxes. It takes the
LLM of `mg-llava convert SOURCE PARTS --to parts`, in a process of its own that nobody else reaches; its key, if it
has one, is in the environment variable VLLM_API_KEY.

Examples:
    mg-llava serve CONFIG.py --checkpoint iter_250.pth --port 8000 --proposals
    curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'
    vllm serve PARTS/llm --enable-prompt-embeds --host 127.0.0.1 --port 8001
    mg-llava serve CONFIG.py --checkpoint iter_250.pth --engine vllm=http://127.0.0.1:8001

Exit status: 0 stopped, 1 config, checkpoint or port cannot be used, 2 wrong arguments.
"""

import argparse
import os
from functools import partial
from typing import Any

from mg_llava.commands._model import add_model_arguments, build_predictor
from mg_llava.commands._server import serve_until_stopped
from mg_llava.work.numbers import positive, whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=512, boxes=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, help="default: %(default)s; 0 takes any free one"
    )
    parser.add_argument("--name", default="mg-llava", help="name of the model in answers (default: %(default)s)")
    parser.add_argument("--api-key", default="", help="what clients must send (default: nothing)")
    parser.add_argument(
        "--batch-size",
        type=whole(),
        default=32,
        help="questions at a time; memory grows with it (default: %(default)s)",
    )
    parser.add_argument("--queue", type=whole(), default=256, help="most requests at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=positive, default=600, help="most seconds of an answer (default: %(default)s)"
    )
    parser.add_argument("--allow-host", action="append", default=[], help="fetch pictures from it (default: none)")
    parser.add_argument("--allow-origin", action="append", default=[], help="web page that may ask (default: none)")
    parser.add_argument("--engine", help="vllm=URL: a vLLM that runs the LLM (default: this process)")
    parser.add_argument("--engine-host", action="append", default=[], help="where it may run but for this machine")
    return parser.parse_args()


def build_engine(arguments: argparse.Namespace) -> Any:
    """A maker of the engine that the arguments name, from a predictor; None for the server's own.

    Raises:
        ValueError: There is no such engine, or it may not be asked.
    """
    if arguments.engine is None:
        return None
    from mg_llava.inference.serving.far_side import FarSide, check_url
    from mg_llava.inference.serving.remote import RemoteEngine

    kind, _, url = arguments.engine.partition("=")
    if kind != "vllm" or not url:
        raise ValueError(f"--engine is {kind!r}; allowed: vllm=URL")
    key, seconds = os.environ.get("VLLM_API_KEY", ""), arguments.timeout
    far = FarSide(check_url(url, arguments.engine_host), key, seconds)
    return lambda predictor: RemoteEngine(predictor, far, arguments.batch_size)


def build_server(arguments: argparse.Namespace) -> Any:
    """The server that the arguments describe, with its predictor and engine."""
    from mg_llava.inference.serving.app import Settings
    from mg_llava.inference.serving.errors import RequestLimits
    from mg_llava.inference.serving.server import ChatServer

    limits = RequestLimits(requests=arguments.queue, seconds=arguments.timeout)
    hosts, origins = tuple(arguments.allow_host), tuple(arguments.allow_origin)
    settings = Settings(arguments.name, arguments.api_key, hosts, origins, limits=limits)
    make_engine = build_engine(arguments)
    predictor = build_predictor(arguments, layers=make_engine is None)
    engine = make_engine and make_engine(predictor)
    return ChatServer(predictor, arguments.host, arguments.port, arguments.batch_size, settings, engine)


def main() -> int:
    """Build the predictor and serve."""
    arguments = parse_arguments()
    place = f"{arguments.name} at http://{arguments.host}"
    return serve_until_stopped(partial(build_server, arguments), "serve", lambda port: f"serving {place}:{port}/v1")
