"""Picture loading against the plain way: padding, numpy processor and both views as float32 in the worker."""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mg_llava.data.pictures.files import open_picture
from mg_llava.data.pictures.geometry import PAD_COLOR
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.models.encoders.views import normalize, resample
from mg_llava.profiling._measure import MB, print_table, rounded, take_turns
from mg_llava.work.folders import walk_files

HELP = (
    "picture loading: images/s of one worker and bytes per picture, with the plain way (CLIPImageProcessor) beside it"
)

Views = dict[str, Tensor]

_SIZES = ((640, 480), (480, 640), (500, 375), (1024, 768), (336, 336), (800, 533))
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--images", type=Path, help="folder with pictures (default: JPEGs of six sizes are made)")
    parser.add_argument("--pictures", type=int, default=60, help="pictures per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best of each way counts (default: 3)")
    parser.add_argument("--high", type=int, default=768, help="side of the canvas (default: %(default)s)")
    parser.add_argument("--low", type=int, default=336, help="side of the low view (default: %(default)s)")


class PlainPictures(Dataset):
    """Both views, normalized, in float32: what the reference's workers make and send."""

    def __init__(self, paths: Sequence[Path], high: int, low: int) -> None:
        from transformers import CLIPImageProcessor

        self.paths, self.low = paths, low
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": high}, crop_size={"height": high, "width": high}, do_convert_rgb=True
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Views:
        """``high`` (3, S, S) and ``low`` (3, s, s), float32."""
        image = Image.open(self.paths[index]).convert("RGB")
        side = max(image.size)
        square = Image.new("RGB", (side, side), PAD_COLOR)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        high = self.processor.preprocess(square, return_tensors="pt")["pixel_values"]
        low = torch.nn.functional.interpolate(high, size=(self.low, self.low), mode="bilinear", align_corners=False)
        return {"high": high[0], "low": low[0]}


class OurPictures(Dataset):
    """The 8-bit canvas; the views are made of it on the device."""

    def __init__(self, paths: Sequence[Path], high: int) -> None:
        self.paths, self.processor = paths, PictureProcessor(high)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Views:
        """``canvas`` (3, S, S) uint8."""
        return {"canvas": self.processor(open_picture(self.paths[index])).pixels}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print a table.

    Returns:
        ``speedup`` in pictures per second of one worker process with one thread, ``bytes_ratio`` of what a picture
        costs on its way to the training process (ours to plain), ``error``, the largest difference between the views
        that reach the encoders, and the single values.

    Raises:
        ValueError: The folder has no pictures.
    """
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        paths = _find(args.images, args.pictures) if args.images else make_pictures(Path(folder), args.pictures)
        plain, ours = PlainPictures(paths, args.high, args.low), OurPictures(paths, args.high)
        error = max(_difference(plain[index], ours[index], args.low) for index in range(len(paths)))
        loaders = {
            name: DataLoader(way, 4, num_workers=1, persistent_workers=True)
            for name, way in (("plain", plain), ("ours", ours))
        }
        ways = {name: partial(_read, loader) for name, loader in loaders.items()}
        take_turns(ways, len(paths), 1)  # starts the workers
        _, rates = take_turns(ways, len(paths), args.rounds)
        canvas = ours[0]["canvas"]
        sizes = {name: sum(v.nbytes for v in way[0].values()) / MB for name, way in (("plain", plain), ("ours", ours))}
    _, views = take_turns({"views": lambda: _views(canvas, args.low)}, 1, 5)
    print(f"{len(paths)} pictures, one worker with one thread, best of {args.rounds} rounds\n")
    titles = {"plain": "plain (float32 views)", "ours": "8-bit canvas"}
    rows = [(title, rates[name], sizes[name]) for name, title in titles.items()]
    print_table([("way", "pictures/s", "MB/picture"), *rows])
    seconds = 1 / views["views"]
    print(f"\nlargest difference between the views: {error:.1e}; views of one canvas on this CPU: {seconds:.4f} s")
    return rounded(
        {
            "speedup": rates["ours"] / rates["plain"],
            "bytes_ratio": sizes["ours"] / sizes["plain"],
            "error": error,
            "images_per_s": rates["ours"],
            "plain_images_per_s": rates["plain"],
            "views_on_device_s": seconds,
            "pictures": len(paths),
        }
    )


def _read(loader: DataLoader) -> None:
    for _ in loader:
        pass


def _difference(plain: Views, ours: Views, low: int) -> float:
    high_view, low_view = _views(ours["canvas"], low)
    return max((high_view - plain["high"]).abs().max().item(), (low_view - plain["low"]).abs().max().item())


def _views(canvas: Tensor, low: int) -> tuple[Tensor, Tensor]:
    high = normalize(canvas[None])
    return high[0], resample(high, low)[0]


def _find(folder: Path, count: int) -> list[Path]:
    files = (folder / name for name in walk_files(folder))
    paths = sorted(path for path in files if path.suffix.lower() in _ENDINGS)[:count]
    if not paths:
        raise ValueError(f"{folder} has no pictures ({', '.join(_ENDINGS)})")
    return paths


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs with soft shapes and some noise, seeded."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        width, height = _SIZES[number % len(_SIZES)]
        coarse = rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths
