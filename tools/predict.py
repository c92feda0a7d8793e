"""Ask a trained model about a picture: one question, or one after the other at a prompt.

Boxes come from a JSON file ([[x1, y1, x2, y2], ...] or {"boxes": ..., "labels": ..., "scores": ...}, pixels of the
picture), from the built-in proposal step (--proposals), from a detector (--detector and --tagger, as for
tools/generate_boxes.py), or there are none.

Examples:
    python tools/predict.py CONFIG.py --checkpoint iter_250.pth --image a.jpg --question "What is there?"
    python tools/predict.py CONFIG.py --checkpoint iter_250.pth --image a.jpg --proposals --out answer.png
    python tools/predict.py CONFIG.py --checkpoint iter_250.pth --image a.jpg --detector owlv2:PATH --tagger coco80
    python tools/predict.py CONFIG.py --checkpoint iter_250.pth --question "What is 2 plus 3?" --json

Exit status: 0 answered, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of the training")
    parser.add_argument("--checkpoint", required=True, help=".pth file, DeepSpeed folder or safetensors file")
    parser.add_argument("--image", action="append", default=[], help="picture; repeat for several; none: text only")
    parser.add_argument("--question", help="without it, questions are read from the terminal")
    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument("--boxes", type=Path, help="JSON file with the picture's boxes")
    boxes.add_argument("--proposals", action="store_true", help="find bright marks as boxes")
    boxes.add_argument("--detector", help="what finds boxes, such as owlv2:PATH or a config of a box pipeline")
    parser.add_argument("--tagger", help="what the detector looks for, such as coco80 or 'cat, dog'")
    parser.add_argument("--out", type=Path, help="write picture, boxes, question and answer as PNG")
    parser.add_argument("--json", action="store_true", help="print the answer with its boxes as JSON")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.boxes and len(arguments.image) != 1:
        parser.error("--boxes needs exactly one --image")
    return arguments


def read_boxes(file: Path | None) -> object:
    """Boxes of a file; without one None."""
    from mg_llava.data.inputs import make_boxes

    if file is None:
        return None
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); boxes are [[x1, y1, x2, y2], ...]") from error
    return make_boxes(content, str(file))


def ask(predictor, arguments: argparse.Namespace, question: str, boxes: object) -> None:
    """Answer one question, and print and draw the answer."""
    from mg_llava.inference import draw_answer

    answer = predictor.predict(arguments.image or None, question, boxes)
    print(json.dumps({"question": question, **answer.to_dict()}) if arguments.json else answer.text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_answer(arguments.image or None, question, answer, processor=predictor.front_end.picture_processor)
        drawn.save(arguments.out, format="PNG")
        print(f"wrote {arguments.out}", file=sys.stderr)


def converse(predictor, arguments: argparse.Namespace, boxes: object) -> None:
    """Answer questions, each on its own, until an empty line or the end of the input."""
    print("One question a line; an empty line ends.", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline().strip()
        if not question:
            return
        try:
            ask(predictor, arguments, question, boxes)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)


def main() -> int:
    """Build the predictor and ask."""
    arguments = parse_arguments()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the log, which imports open; stdout is for answers
            from mg_llava.detection.pipeline import build_pipeline
            from mg_llava.inference import Predictor

            boxes = read_boxes(arguments.boxes)
            finder = "proposals" if arguments.proposals else arguments.detector
            device = arguments.device if arguments.detector else None
            proposer = build_pipeline(finder, arguments.tagger, device=device).propose if finder else None
            settings = {"proposer": proposer, "max_new_tokens": arguments.max_new_tokens}
            if arguments.apply_exif:
                settings["pictures"] = {"apply_exif": True}
            predictor = Predictor.from_pretrained(arguments.config, arguments.checkpoint, arguments.device, **settings)
        if arguments.question is None:
            converse(predictor, arguments, boxes)
        else:
            ask(predictor, arguments, arguments.question, boxes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    from mg_llava.work.interrupts import run_main

    sys.exit(run_main(main))
