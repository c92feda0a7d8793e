"""Box pipeline against the plain way: one picture after the other through transformers' processor and forward pass."""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mg_llava.compat import picture_processor
from mg_llava.profiling._measure import print_table, rounded, take_turns
from mg_llava.profiling.data import make_pictures

HELP = "box pipeline: pictures/s of OWLv2 over a tag list, batched with decoding ahead against one by one, and boxes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--pictures", type=int, default=32, help="pictures to detect in (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="best of so many (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--model", help="folder or name of an OWLv2 (default: a small one with random weights)")
    parser.add_argument("--tags", default="coco80", help="tag list (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="of the batched way (default: %(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; prints a table and returns the numbers."""
    from mg_llava.detection.pipeline import BoxPipeline

    with tempfile.TemporaryDirectory() as folder:
        paths = make_pictures(Path(folder), arguments.pictures)
        model = arguments.model or write_small_owlv2(Path(folder) / "owlv2")
        detector = {"type": "OWLv2Detector", "path": model, "device": arguments.device, "dtype": arguments.dtype}
        pipeline = BoxPipeline(detector=detector, tagger={"type": "FixedTags", "tags": arguments.tags})
        plain = _Plain(model, pipeline.detector.device, pipeline.tagger.tags)  # type: ignore[attr-defined,union-attr]
        ways: dict[str, Callable[[list[Path]], list]] = {
            "plain": plain,
            "one": lambda some: _batched(pipeline, some, 1, 1),
            "batched": lambda some: _batched(pipeline, some, arguments.batch_size, arguments.workers),
        }
        for way in ways.values():
            way(paths[: arguments.batch_size])  # to warm up
        found, speeds = take_turns(
            {name: partial(way, paths) for name, way in ways.items()}, len(paths), arguments.rounds
        )
    titles = ("plain: transformers, one by one", "here, one by one", f"here, batches of {arguments.batch_size}")
    boxes, error = sum(map(len, found["batched"])), max(map(_difference, found["plain"], found["batched"]))
    print_table([("", "pictures/s"), *zip(titles, speeds.values(), strict=True)])
    print(f"largest difference of a box: {error:.2g} pixels, in {boxes} boxes")
    return rounded(
        {
            "pictures": len(paths),
            "batch_size": arguments.batch_size,
            "tags": len(pipeline.tagger.tags),  # type: ignore[union-attr]
            "device": str(pipeline.detector.device),  # type: ignore[attr-defined]
            "per_s": speeds,
            "speedup": speeds["batched"] / speeds["plain"],
            "speedup_of_batching": speeds["batched"] / speeds["one"],
            "boxes": boxes,
            "error": error,
        }
    )


class _Plain:
    """The reference's way: all prompts and one picture through the processor, for every picture."""

    def __init__(self, path: str, device: torch.device, tags: tuple[str, ...]) -> None:
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        from mg_llava.models.weights.loading import load_hugging_face

        self.processor = Owlv2Processor.from_pretrained(path)
        self.processor.image_processor = picture_processor("Owlv2ImageProcessor", path)
        self.model = load_hugging_face(Owlv2ForObjectDetection, path).eval().to(device)
        self.prompts = [[f"a photo of {tag}" for tag in tags]]

    @torch.no_grad()
    def __call__(self, paths: list[Path]) -> list[np.ndarray]:
        found = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            inputs = self.processor(text=self.prompts, images=image, return_tensors="pt").to(self.model.device)
            side = max(image.size)
            results = self.processor.image_processor.post_process_object_detection(
                self.model(**inputs), threshold=0.2, target_sizes=[(side, side)]
            )[0]
            boxes = results["boxes"].cpu().double().numpy()
            boxes = np.clip(boxes, 0, np.tile(image.size, 2))
            boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
            found.append(boxes)
        return found


def write_small_owlv2(
    folder: Path,
    side: int = 384,
    patch: int = 16,
    widths: tuple[int, int] = (192, 128),
    layers: int = 4,
    limit: int = 32,
    spread: float = 0.08,
) -> str:
    """Write an OWLv2 with random weights and a tokenizer of single letters as a Hugging Face folder.

    Args:
        folder: Where to.
        side: Side of its input in pixels.
        patch: Side of a patch.
        widths: Of the vision and of the text tower.
        layers: Of each tower.
        limit: Most tokens of a prompt.
        spread: Standard deviation of the weights; large ones make pictures and texts differ.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = CLIPTokenizer(*files, pad_token="!", model_max_length=limit)
    tokenizer.save_pretrained(folder)
    Owlv2ImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    vision, text = (
        {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 2}
        for width in widths
    )
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = Owlv2Config(
        text_config={**text, **ends, "vocab_size": len(words), "max_position_embeddings": limit},
        vision_config={**vision, "image_size": side, "patch_size": patch},
        projection_dim=widths[1],
    )
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "position" not in name:
            torch.nn.init.normal_(parameter, std=spread)
    model.save_pretrained(folder)
    return str(folder)


def _batched(pipeline: Any, paths: list[Path], batch_size: int, workers: int) -> list[np.ndarray]:
    from mg_llava.data.pictures.files import open_picture
    from mg_llava.work.prefetch import prefetched

    def load(path: Path) -> Any:
        return pipeline.prepare(open_picture(path))

    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    loaded = prefetched(batches, list, load, workers)
    return [found.record.boxes for _, batch in loaded for found in pipeline.detect(batch)]


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance between corresponding boxes, in any order; infinite where their numbers differ."""
    if len(first) != len(second):
        return float("inf")
    if not len(first):
        return 0.0
    order = [np.lexsort(boxes.round(2).T) for boxes in (first, second)]
    return float(np.abs(first[order[0]] - second[order[1]]).max())
