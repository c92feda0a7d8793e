"""Arguments that say which model is asked, and where boxes come from; the same for all commands that ask one."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_llava.work.numbers import whole


def add_model_arguments(parser: argparse.ArgumentParser, max_new_tokens: int, boxes: bool) -> None:
    """Add them; ``boxes`` for a file of boxes too."""
    parser.add_argument("model", help="config of the training, Hugging Face folder of ours, or hub id")
    kinds = ".pth file, DeepSpeed folder, safetensors file, or the work directory of a run"
    parser.add_argument("--checkpoint", help=f"with a config: {kinds}")
    source = parser.add_mutually_exclusive_group()
    if boxes:
        source.add_argument("--boxes", type=Path, help="JSON file with boxes of the picture, or of each frame")
    source.add_argument("--proposals", action="store_true", help="find bright marks as boxes where none are given")
    source.add_argument("--detector", help="what finds boxes, such as owlv2:PATH or a config of a box pipeline")
    parser.add_argument("--tagger", help="what the detector looks for, such as coco80 or 'cat, dog'")
    parser.add_argument("--system", default="", help="system text before the first question (default: none)")
    parser.add_argument(
        "--max-new-tokens", type=whole(), default=max_new_tokens, help="longest answer (default: %(default)s)"
    )
    parser.add_argument("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")


def build_predictor(arguments: argparse.Namespace, **generation: Any) -> Any:
    """The predictor that the arguments name; the log goes to stderr, because stdout is for answers.

    Raises:
        OSError: Something does not exist.
        ValueError: Something cannot be read or does not fit.
    """
    with contextlib.redirect_stdout(sys.stderr):
        from mg_llava.detection.pipeline import build_pipeline
        from mg_llava.inference import Predictor

        finder = "proposals" if arguments.proposals else arguments.detector
        device = arguments.device if arguments.detector else None
        proposer = build_pipeline(finder, arguments.tagger, device=device).propose if finder else None
        given = {"proposer": proposer, "system": arguments.system, "max_new_tokens": arguments.max_new_tokens}
        if arguments.apply_exif:
            given["pictures"] = {"apply_exif": True}
        return Predictor.from_pretrained(
            arguments.model, arguments.checkpoint, arguments.device, **given, **generation
        )


def read_boxes(file: str | Path, shown: Sequence[Any]) -> Any:
    """Boxes of a JSON file, checked: of the one picture that is shown, or of each frame of the video.

    Raises:
        OSError: It cannot be opened.
        ValueError: It holds no boxes.
    """
    from mg_llava.data.inputs import list_video, make_boxes

    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); boxes are [[x1, y1, x2, y2], ...]") from error
    if list_video(shown) is None:
        return make_boxes(content, str(file))
    if not isinstance(content, list):
        raise ValueError(f"{file}: boxes of a video are a list with one set, or null, for each frame that is seen")
    return [None if one is None else make_boxes(one, f"{file}, frame {i}") for i, one in enumerate(content)]
