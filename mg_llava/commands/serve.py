"""Serve a trained model behind OpenAI's chat-completions interface.

Any client of such an endpoint can then use it, lmms-eval and VLMEvalKit among them. Pictures come as data: URLs in
base64, or from hosts that --allow-host names; their image_url may have "boxes": [[x1, y1, x2, y2], ...] in pixels of
the picture. Needs the extra "serve".

Examples:
    mg-llava serve CONFIG.py --checkpoint iter_250.pth --port 8000 --proposals
    curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'

Exit status: 0 stopped, 1 config, checkpoint or port cannot be used, 2 wrong arguments.
"""

import argparse
import contextlib
import sys

from mg_llava.commands._model import add_model_arguments, build_predictor


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=512, boxes=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes any free one")
    parser.add_argument("--name", default="mg-llava", help="name of the model in answers (default: %(default)s)")
    parser.add_argument("--api-key", default="", help="what clients must send (default: nothing)")
    parser.add_argument("--batch-size", type=int, default=8, help="questions answered together (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=256, help="most requests at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="most seconds of an answer (default: %(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], help="fetch pictures from it (default: none)")
    parser.add_argument("--allow-origin", action="append", default=[], help="web page that may ask (default: none)")
    return parser.parse_args()


def main() -> int:
    """Build the predictor and serve."""
    arguments = parse_arguments()
    try:
        from mg_llava.inference.serving.app import Settings
        from mg_llava.inference.serving.errors import RequestLimits
        from mg_llava.inference.serving.server import ChatServer

        limits = RequestLimits(requests=arguments.queue, seconds=arguments.timeout)
        hosts, origins = tuple(arguments.allow_host), tuple(arguments.allow_origin)
        settings = Settings(arguments.name, arguments.api_key, hosts, origins, limits=limits)
        predictor = build_predictor(arguments)
        server = ChatServer(predictor, arguments.host, arguments.port, arguments.batch_size, settings)
    except ImportError as error:
        print(f"error: {error}; pip install 'mg_llava[serve]'", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"serving {arguments.name} at http://{arguments.host}:{server.port}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        server.run()
    return 0
