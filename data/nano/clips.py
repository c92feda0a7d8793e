"""Clips of the miniature, and questions about order and change over their frames.

A clip has three frames with the same photograph and the same distractors. Clips of the one sort show one digit in each
frame; in those of the other sort digits stay, but one appears, disappears or moves. Each clip is a video file, and its
middle frame one more. Records and held-out questions go into data/nano/generated/clips.

Examples:
    python data/nano/clips.py
    python data/nano/clips.py --train 32 --heldout 8 --out /tmp/small
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import language  # noqa: E402
import made  # noqa: E402
import scenes  # noqa: E402

FORMAT = 1
FRAMES = 3
OUT = HERE / "generated" / "clips"
QUESTIONS = {
    "first": "Which digit is first?",
    "last": "Which digit is last?",
    "order": "List the digits from first to last.",
    "before": "Which digit is there before {}?",
    "appears": "Which digit is new?",
    "disappears": "Which digit is no longer there?",
    "moves": "Which digit is in another place?",
}
ORDER = ("first", "last", "order", "before")
CHANGE = ("appears", "disappears", "moves")
KINDS = (*ORDER, *CHANGE)
CHANCE = {"first": 1 / 10, "last": 1 / 10, "order": 1 / 720, "before": 1 / 9, **dict.fromkeys(CHANGE, 1 / 10)}
"""Accuracy of the best guess without looking."""
SIZES = {"train": 1600, "heldout": 240}
"""Clips of each part."""
Item = tuple[int, int, int, int]
Line = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """What is where in each frame: items as of ``scenes.sample_layout``; and the kind of change, or ``"order"``."""

    frames: tuple[tuple[Item, ...], ...]
    sort: str

    def digits(self, frame: int) -> list[int]:
        """The digits of a frame."""
        return [item[0] for item in self.frames[frame] if item[0] >= 0]


def sample_clip(rng: np.random.Generator, sort: str | None = None) -> Clip:
    """A clip of some sort: half of them show one digit a frame, in the others two or three digits stay."""
    sort = sort or str(rng.choice(["order", *CHANGE], p=[0.5, *[0.5 / 3] * 3]))
    cells = [divmod(int(cell), scenes.GRID) for cell in rng.permutation(scenes.GRID**2)]
    levels = iter(rng.integers(0, 3, len(cells)).tolist())
    digits = rng.permutation(10).tolist()
    places = iter(cells)

    def mark(digit: int) -> Item:
        return (digit, *next(places), next(levels))

    shapes = [mark(-1) for _ in range(int(rng.integers(1, 4)))]
    if sort == "order":
        return Clip(tuple((mark(digits[frame]), *shapes) for frame in range(FRAMES)), sort)
    staying = [mark(digit) for digit in digits[1 : int(rng.integers(2, 4))]]
    one, when = mark(digits[0]), int(rng.integers(1, FRAMES))
    other = [(one[0], *next(places), one[3])] if sort == "moves" else []
    early, late = ([], [one]) if sort == "appears" else ([one], other)
    return Clip(tuple((*staying, *(late if frame >= when else early), *shapes) for frame in range(FRAMES)), sort)


def ask(rng: np.random.Generator, clip: Clip, kind: str) -> language.Question:
    """A question of a kind that fits the clip's sort, and its answer."""
    if kind in CHANGE:
        places = [{item[:3] for item in frame if item[0] >= 0} for frame in clip.frames]
        ((digit,),) = [{item[0] for item in places[0] ^ places[-1]}]
        return language.Question(kind, QUESTIONS[kind], str(digit))
    seen = [clip.digits(frame)[0] for frame in range(FRAMES)]
    if kind == "order":
        return language.Question(kind, QUESTIONS[kind], ", ".join(map(str, seen)))
    if kind == "before":
        place = int(rng.integers(1, FRAMES))
        return language.Question(kind, QUESTIONS[kind].format(seen[place]), str(seen[place - 1]))
    return language.Question(kind, QUESTIONS[kind], str(seen[0 if kind == "first" else -1]))


def questions(rng: np.random.Generator, clip: Clip) -> list[language.Question]:
    """All questions about a clip, in random order."""
    kinds = ORDER if clip.sort == "order" else (clip.sort,)
    return [ask(rng, clip, str(kind)) for kind in rng.permutation(kinds)]


def draw_clip(rng: np.random.Generator, split: scenes.Split, clip: Clip) -> list[Image.Image]:
    """The frames, of the canvas' size; a mark that stays looks the same in each."""
    frame = scenes.Frame(scenes.CANVAS, scenes.CANVAS)
    background = scenes.draw_background(rng, split, frame)
    looks = {item: int(rng.integers(1 << 31)) for item in dict.fromkeys(sum(clip.frames, ()))}
    return [_draw_frame(rng, split, frame, background.copy(), items, looks) for items in clip.frames]


def _draw_frame(
    rng: np.random.Generator,
    split: scenes.Split,
    frame: scenes.Frame,
    pixels: np.ndarray,
    items: Sequence[Item],
    looks: dict[Item, int],
) -> Image.Image:
    for item in items:
        digit, row, column, level = item
        scenes.place(np.random.default_rng(looks[item]), pixels, frame, split, digit, (row, column), level)
    return scenes.finish(rng, pixels, []).image


def write_video(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write a video of one frame a second; the same frames give the same bytes."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1, options={"qscale": "2"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        stream.codec_context.flags |= 2  # a quality (qscale) in place of a bit rate
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def write_part(out: Path, part: str, count: int, seed: int) -> None:
    """Videos, their middle frames, and records or held-out questions."""
    rng, records, lines = np.random.default_rng(seed), [], []
    for folder in ("videos", "middle"):
        (out / folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        clip = sample_clip(rng)
        frames = draw_clip(rng, "heldout" if part == "heldout" else "train", clip)
        name, identifier = f"{part}/{index:05d}.mp4", f"{part}-{index:05d}"
        write_video(out / "videos" / name, frames)
        write_video(out / "middle" / name, frames[FRAMES // 2 : FRAMES // 2 + 1])
        asked = questions(rng, clip)
        turns: list[Line] = []
        for number, one in enumerate(asked):
            turns.append({"from": "human", "value": one.question if number else f"<video>\n{one.question}"})
            turns.append({"from": "gpt", "value": one.answer})
            line = {"id": f"{identifier}-{one.kind}", "picture": identifier, "image": name, "kind": one.kind}
            lines.append(line | {"question": one.question, "answer": one.answer})
        records.append({"id": identifier, "video": name, "conversations": turns})
    if part == "heldout":
        (out / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        (out / f"{part}.json").write_text(json.dumps(records))


def prepare(out: Path = OUT, sizes: dict[str, int] = SIZES, seed: int = 0) -> None:
    """Make the clips, or see that they are there."""
    settings = {"format": FORMAT, "seed": seed, **sizes}
    if made.is_made(out, settings):
        return
    for number, (part, count) in enumerate(sizes.items()):
        write_part(out, part, count, 1000 * seed + 31 + number)
    made.finish(out, settings)
    print(f"wrote {sizes['train']} training and {sizes['heldout']} held-out clips to {out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part, count in SIZES.items():
        parser.add_argument(f"--{part}", type=int, default=count, help=f"{part} clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="default: data/nano/generated/clips")
    arguments = parser.parse_args()
    prepare(arguments.out, {part: getattr(arguments, part) for part in SIZES}, arguments.seed)


if __name__ == "__main__":
    main()
