"""Picture loading against the plain way: padding, numpy processor and both views as float32 in the worker."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
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
        rates = _measure_rates({"plain": plain, "ours": ours}, args.rounds)
        canvas = ours[0]["canvas"]
        sizes = {name: sum(v.nbytes for v in data[0].values()) for name, data in (("plain", plain), ("ours", ours))}
    device = _seconds(lambda: _views(canvas, args.low))
    print(f"{len(paths)} pictures, one worker with one thread, best of {args.rounds} rounds\n")
    print(f"{'way':<28}{'pictures/s':>12}{'MB/picture':>12}")
    print(f"{'plain (float32 views)':<28}{rates['plain']:>12.1f}{sizes['plain'] / 1e6:>12.2f}")
    print(f"{'8-bit canvas':<28}{rates['ours']:>12.1f}{sizes['ours'] / 1e6:>12.2f}")
    print(
        f"\nlargest difference between the views: {error:.1e}; views of one canvas on this CPU: {1000 * device:.1f} ms"
    )
    return {
        "speedup": round(rates["ours"] / rates["plain"], 2),
        "bytes_ratio": round(sizes["ours"] / sizes["plain"], 4),
        "error": error,
        "images_per_s": round(rates["ours"], 2),
        "plain_images_per_s": round(rates["plain"], 2),
        "views_on_device_s": round(device, 5),
        "pictures": len(paths),
    }


def _measure_rates(ways: dict[str, Dataset], rounds: int) -> dict[str, float]:
    """Pictures per second through a loader with one worker; the ways take turns, so that drift hits both."""
    best = dict.fromkeys(ways, 0.0)
    loaders = {name: DataLoader(data, 4, num_workers=1, persistent_workers=True) for name, data in ways.items()}
    for loader in loaders.values():  # starts the workers
        for _ in loader:
            pass
    for _ in range(rounds):
        for name, loader in loaders.items():
            start, count = time.perf_counter(), 0
            for batch in loader:
                count += len(next(iter(batch.values())))
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def _difference(plain: Views, ours: Views, low: int) -> float:
    high_view, low_view = _views(ours["canvas"], low)
    return max((high_view - plain["high"]).abs().max().item(), (low_view - plain["low"]).abs().max().item())


def _views(canvas: Tensor, low: int) -> tuple[Tensor, Tensor]:
    high = normalize(canvas[None])
    return high[0], resample(high, low)[0]


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _find(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)[:count]
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
