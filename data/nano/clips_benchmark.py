"""The held-out questions about clips of the miniature by kind, and those about its pictures; exact match.

A model that was trained on one frame is shown the middle one of each clip.

Examples:
    python data/nano/clips_benchmark.py CONFIG.py --checkpoint FILE --out FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmengine.config import Config

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import benchmarks  # noqa: E402
import clips  # noqa: E402

from mg_llava.data.pictures.video import read_frames  # noqa: E402
from mg_llava.evaluation import command  # noqa: E402
from mg_llava.evaluation.benchmark import BENCHMARKS, Question  # noqa: E402
from mg_llava.evaluation.release import Release  # noqa: E402
from mg_llava.tokens import VIDEO_PLACEHOLDER  # noqa: E402

MAKE = "it with `python data/nano/clips.py`"


@BENCHMARKS.register
class NanoClips(benchmarks.NanoKinds):
    """``heldout.jsonl`` of clips, which are in ``videos/`` beside it, their middle frames in ``middle/``."""

    scorer = "nano_clips"
    releases = (Release("nano_clips", ("clips/heldout.jsonl",), "clips/videos", MAKE),)
    frames = clips.FRAMES
    max_new_tokens = 12

    def questions(self) -> Sequence[Question]:
        """Those of each clip's sort."""
        return [self._about_clip(line) for line in benchmarks.load_lines(self.data)]

    def _about_clip(self, line: benchmarks.Line) -> Question:
        folder = Path(self.picture_folder("videos"))
        folder = folder if self.frames > 1 else folder.with_name("middle")
        asked = self.ask(
            line["id"], f"{VIDEO_PLACEHOLDER}\n{line['question']}", line["image"], box_key=line["picture"]
        )
        opener = partial(read_frames, folder / line["image"], self.frames, f"question {line['id']}")
        return replace(asked, picture=opener, frames=self.frames)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="config", help="config of the training")
    command.add_arguments(parser)
    parser.set_defaults(data=benchmarks.GENERATED, box_file=benchmarks.GENERATED / "heldout_boxes.json")
    arguments = parser.parse_args()
    if not arguments.checkpoint:
        parser.error("--checkpoint is needed")
    NanoClips.frames = Config.fromfile(arguments.model).picture_processor.video.frames
    return command.run(arguments, ["nano", "nano_clips"])


if __name__ == "__main__":
    sys.exit(main())
