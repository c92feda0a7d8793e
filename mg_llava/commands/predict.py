"""Ask a trained model one question about pictures, or about a video.

Boxes come from a JSON file ([[x1, y1, x2, y2], ...] or {"boxes": ..., "labels": ..., "scores": ...}, pixels of the
picture; of a video a list with such boxes, or null, for each frame that is seen), from the built-in proposal step
(--proposals), from a detector (--detector and --tagger, as for generate_boxes), or there are none. Conversations are
held by chat.

Examples:
    mg-llava predict CONFIG.py --checkpoint iter_250.pth --image a.jpg --question "What is there?"
    mg-llava predict FOLDER --image a.jpg --question "What is there?" --proposals --out answer.png
    mg-llava predict FOLDER --image a.jpg --question ... --detector owlv2:PATH --tagger coco80
    mg-llava predict CONFIG.py --checkpoint iter_250.pth --question "What is 2 plus 3?" --json

Exit status: 0 answered, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import json
import sys
from pathlib import Path

from mg_llava.commands._model import add_model_arguments, build_predictor, read_boxes


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=100, boxes=True)
    parser.add_argument(
        "--image", action="append", default=[], help="picture, repeat for several, or a video; none: text only"
    )
    parser.add_argument("--question", required=True, help="the question")
    parser.add_argument("--out", type=Path, help="write picture, boxes, question and answer as PNG")
    parser.add_argument("--json", action="store_true", help="print the answer with its boxes as JSON")
    arguments = parser.parse_args()
    if arguments.boxes and len(arguments.image) != 1:
        parser.error("--boxes needs exactly one --image")
    return arguments


def main() -> int:
    """Build the predictor and ask."""
    arguments = parse_arguments()
    try:
        boxes = read_boxes(arguments.boxes, arguments.image) if arguments.boxes else None
        predictor = build_predictor(arguments)
        answer = predictor.predict(arguments.image or None, arguments.question, boxes)
        print(json.dumps({"question": arguments.question, **answer.to_dict()}) if arguments.json else answer.text)
        if arguments.out:
            from mg_llava.inference import draw_answer

            processor = predictor.front_end.picture_processor
            drawn = draw_answer(arguments.image or None, arguments.question, answer, processor=processor)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(arguments.out, format="PNG")
            print(f"wrote {arguments.out}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
