"""See how a model reads an answer: the probability of each token with and without coordinates, and its attention.

The question may have {box}, which becomes the text of --box; the other question, without coordinates, is --without or
the same one without {box}. Writes OUT/probabilities.json and OUT/attention.png, a heat map of the attention from the
answer's tokens to the picture (mean over the heads of a layer), and prints the probabilities.

Examples:
    mg-llava explain CONFIG.py --checkpoint iter_1000.pth --image a.jpg --question "What is at {box}?" \
        --box 10,20,120,200 --without "What is it?" --answer "a brown dog" --out explained
    mg-llava explain FOLDER --image a.jpg --question "Where is the dog?" --out explained --layer 20

Exit status: 0 done, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mg_llava.commands._model import add_model_arguments, build_predictor

_BOX = "{box}"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=100, boxes=False)
    parser.add_argument("--image", required=True, help="the picture")
    parser.add_argument("--question", required=True, help="the question; {box} is where the text of --box goes")
    parser.add_argument("--box", type=_corners, metavar="X1,Y1,X2,Y2", help="pixels of the picture")
    parser.add_argument("--without", help="question without coordinates (default: the question without {box})")
    parser.add_argument("--answer", help="answer to read (default: what the model answers)")
    parser.add_argument("--layer", type=int, help="layer of the LLM, from 0, or from -1 backwards (default: middle)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    if (arguments.box is None) != (_BOX not in arguments.question):
        parser.error("--box and {box} in --question go together")
    return arguments


def explain_answer(arguments: argparse.Namespace) -> str:
    """Write both figures; gives the table."""
    from mg_llava.data.inputs import load_picture
    from mg_llava.data.pictures.files import to_rgb
    from mg_llava.inference import Request
    from mg_llava.inference.explaining import read_answer
    from mg_llava.inspection.explain import compare_readings, draw_attention, format_comparison
    from mg_llava.work.atomic import write_json

    predictor = build_predictor(arguments)
    processor = predictor.front_end.picture_processor
    image = to_rgb(load_picture(arguments.image, "--image"), processor.mode, processor.apply_exif)
    questions = {"question": arguments.question}
    if arguments.box is not None:
        plain = arguments.without or " ".join(arguments.question.replace(_BOX, "").split())
        questions = {"with box": arguments.question.replace(_BOX, "<box:0>"), "without box": plain}
    elif arguments.without:
        questions["other question"] = arguments.without
    boxes = [] if arguments.box is None else [arguments.box]
    requests = {name: Request(question, arguments.image, objects=boxes) for name, question in questions.items()}
    first = next(iter(requests.values()))
    answer: Any = arguments.answer or predictor.batch([first])[0].token_ids
    layers = predictor.model.llm.config.num_hidden_layers
    layer = layers // 2 if arguments.layer is None else arguments.layer
    readings = {name: read_answer(predictor, request, answer, layer) for name, request in requests.items()}
    found = compare_readings(readings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {"questions": questions, "answer": "".join(found["tokens"]), "layer": layer}
    write_json(arguments.out / "probabilities.json", {**settings, **found})
    draw_attention(image, next(iter(readings.values()))).save(arguments.out / "attention.png")
    return format_comparison(found)


def main() -> int:
    """Explain, and print the table."""
    arguments = parse_arguments()
    try:
        print(explain_answer(arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.out / 'probabilities.json'} and {arguments.out / 'attention.png'}", file=sys.stderr)
    return 0


def _corners(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no box; four numbers are needed")
    return values
