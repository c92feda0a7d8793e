"""Serve a trained model behind OpenAI's chat-completions interface.

Any client of such an endpoint can then use it, lmms-eval and VLMEvalKit among them. Pictures come as data: URLs in
base64, or from hosts that --allow-host names; their image_url may have "boxes": [[x1, y1, x2, y2], ...] in pixels of
the picture. Needs the extra "serve".

Examples:
    python tools/serve.py CONFIG.py --checkpoint iter_250.pth --port 8000 --proposals
    curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'

Exit status: 0 stopped, 1 config, checkpoint or port cannot be used, 2 wrong arguments.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of the training")
    parser.add_argument("--checkpoint", required=True, help=".pth file, DeepSpeed folder or safetensors file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes any free one")
    parser.add_argument("--name", default="mg-llava", help="name of the model in answers (default: %(default)s)")
    parser.add_argument("--api-key", default="", help="what clients must send (default: nothing)")
    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument("--proposals", action="store_true", help="find bright marks as boxes where none are sent")
    boxes.add_argument("--detector", help="what finds boxes where none are sent, such as owlv2:PATH")
    parser.add_argument("--tagger", help="what the detector looks for, such as coco80 or 'cat, dog'")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="default limit (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="questions answered together (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=256, help="most requests at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="most seconds of an answer (default: %(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], help="host to fetch pictures from (default: none)"
    )
    parser.add_argument("--allow-origin", action="append", default=[], help="web page that may ask (default: none)")
    parser.add_argument("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Build the predictor and serve."""
    arguments = parse_arguments()
    try:
        from mg_llava.detection.pipeline import build_pipeline
        from mg_llava.inference import Predictor
        from mg_llava.inference.serving.app import Settings
        from mg_llava.inference.serving.errors import Limits
        from mg_llava.inference.serving.server import ChatServer

        finder = "proposals" if arguments.proposals else arguments.detector
        device = arguments.device if arguments.detector else None
        proposer = build_pipeline(finder, arguments.tagger, device=device).propose if finder else None
        given = {"proposer": proposer, "max_new_tokens": arguments.max_new_tokens}
        if arguments.apply_exif:
            given["pictures"] = {"apply_exif": True}
        predictor = Predictor.from_pretrained(arguments.config, arguments.checkpoint, arguments.device, **given)
        settings = Settings(
            arguments.name,
            arguments.api_key,
            tuple(arguments.allow_host),
            tuple(arguments.allow_origin),
            limits=Limits(requests=arguments.queue, seconds=arguments.timeout),
        )
        server = ChatServer(predictor, arguments.host, arguments.port, arguments.batch_size, settings)
    except ImportError as error:
        print(f"error: {error}; pip install 'mg_llava[serve]'", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"serving {arguments.name} at http://{arguments.host}:{server.port}/v1", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # the usual end
    return 0


if __name__ == "__main__":
    from mg_llava.work.interrupts import run_main

    sys.exit(run_main(main))
