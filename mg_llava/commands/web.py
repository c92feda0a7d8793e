"""Open a page on which a trained model is asked about pictures, and boxes are seen, drawn, moved and named.

Answers with and without boxes stand side by side; the page shows what contributed to an answer, and what the model
receives. It is for this machine alone unless --host says otherwise, loads nothing from the net and sends nothing
there. Needs the extra "web".

Examples:
    mg-llava web CONFIG.py --checkpoint iter_250.pth --proposals --examples pictures/
    mg-llava web FOLDER --detector owlv2:PATH --tagger coco80 --port 7860

Exit status: 0 stopped, 1 config, checkpoint or port cannot be used, 2 wrong arguments.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mg_llava.commands._model import add_model_arguments, build_predictor
from mg_llava.commands._server import serve_until_stopped
from mg_llava.data.records.turns import PICTURE_SUFFIXES
from mg_llava.work.folders import walk_files
from mg_llava.work.numbers import whole

_MOST_EXAMPLES = 12


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=512, boxes=False)
    parser.add_argument("--examples", nargs="+", type=Path, default=[], help="pictures, or folders of them")
    parser.add_argument("--title", default="MG-LLaVA", help="of the page (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=7860, help="default: %(default)s; 0 takes any free one"
    )
    return parser.parse_args()


def find_examples(given: Sequence[Path]) -> list[Path]:
    """The first pictures among files and folders, by name.

    Raises:
        FileNotFoundError: One is not there, or a folder has no picture.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"--examples {path} does not exist; give pictures or a folder of them")
        inside = sorted(path / name for name in walk_files(path)) if path.is_dir() else [path]
        pictures = [file for file in inside if file.suffix.lower() in PICTURE_SUFFIXES]
        if not pictures:
            raise FileNotFoundError(f"--examples {path} has no picture; pictures end in {', '.join(PICTURE_SUFFIXES)}")
        found += pictures
    return found[:_MOST_EXAMPLES]


def build_page(arguments: argparse.Namespace) -> Any:
    """The page's server with the predictor that the arguments name."""
    from mg_llava.inference.web.server import PageServer

    examples = find_examples(arguments.examples)
    predictor = build_predictor(arguments)
    return PageServer(predictor, arguments.host, arguments.port, arguments.title, examples)


def main() -> int:
    """Build the predictor and serve the page."""
    arguments = parse_arguments()
    place = f"http://{arguments.host}"
    return serve_until_stopped(partial(build_page, arguments), "web", lambda port: f"the page is at {place}:{port}")
