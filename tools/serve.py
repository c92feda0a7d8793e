"""Serve a trained model behind OpenAI's chat-completions interface.

Any client of such an endpoint can then use it, lmms-eval and VLMEvalKit among them. Pictures come as data: URLs in
base64; their image_url may have "boxes": [[x1, y1, x2, y2], ...] in pixels of the picture.

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
    parser.add_argument("--proposals", action="store_true", help="find bright marks as boxes where none are sent")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="default limit (default: %(default)s)")
    parser.add_argument("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Build the predictor and serve."""
    arguments = parse_arguments()
    from mg_llava.detection.proposals import ConnectedComponentProposals
    from mg_llava.inference import Predictor
    from mg_llava.inference.server import make_server

    try:
        proposer = ConnectedComponentProposals() if arguments.proposals else None
        settings = {"proposer": proposer, "max_new_tokens": arguments.max_new_tokens}
        if arguments.apply_exif:
            settings["pictures"] = {"apply_exif": True}
        predictor = Predictor.from_config(arguments.config, arguments.checkpoint, arguments.device, **settings)
        server = make_server(predictor, arguments.host, arguments.port, arguments.name, arguments.api_key)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"serving {arguments.name} at http://{arguments.host}:{server.server_port}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    from mg_llava.work.interrupts import run_main

    sys.exit(run_main(main))
