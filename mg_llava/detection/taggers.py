"""Taggers with a model: RAM++ and zero-shot CLIP.

Shapes: N pictures, T tags, S side of the view in pixels, D width of the joint embedding.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image
from torch import Tensor

from mg_llava.detection.tags import PictureName, Tags, read_tag_list, split_tags
from mg_llava.models.weights.guard import safe_torch_load
from mg_llava.registry import TAGGERS
from mg_llava.work.devices import autocast, pick_device

_TEXT_BATCH = 32


@TAGGERS.register_module()
class RAMPlusTagger:
    """RAM++ with the reference's settings: Swin-L, 384 px, the thresholds of the package for each tag.

    Needs the package ``ram`` (``pip install git+https://github.com/xinyu1205/recognize-anything``).

    Args:
        checkpoint: ``ram_plus_swin_large_14m.pth``.
        image_size: Side of the view in pixels.
        vit: Name of the backbone in the package.
        device: See ``pick_device``.
        dtype: Dtype of the computation, see ``autocast``.

    Raises:
        ImportError: The package is not installed, or does not work with the installed transformers.
        FileNotFoundError: There is no such checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        image_size: int = 384,
        vit: str = "swin_l",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"RAM++ checkpoint {checkpoint} does not exist; give ram_plus_swin_large_14m.pth")
        try:
            from ram import get_transform
            from ram.models import ram_plus
        except ImportError as error:
            raise ImportError(
                f"tagging with RAM++ needs the package 'ram' ({error}): pip install "
                "git+https://github.com/xinyu1205/recognize-anything; or use OpenCLIPTagger or FixedTags"
            ) from error
        self.device, self.dtype = pick_device(device), dtype
        with contextlib.redirect_stdout(sys.stderr), safe_torch_load():  # it prints; stdout is for results
            model = ram_plus(pretrained=str(checkpoint), image_size=image_size, vit=vit)
        self.model = model.eval().to(self.device)
        self.transform = get_transform(image_size=image_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """See :class:`mg_llava.detection.tags.Tagger`."""
        if not images:
            return []
        pixels = torch.stack([self.transform(image) for image in images]).to(self.device)  # (N, 3, S, S)
        with autocast(self.device, self.dtype):
            english = self.model.generate_tag(pixels)[0]
        return [split_tags(text.replace(",", " ")) for text in english]


@TAGGERS.register_module()
class OpenCLIPTagger:
    """Zero-shot tags of an OpenCLIP model, such as the ConvNeXt that is the high-resolution encoder.

    A picture gets the ``top_k`` tags whose text is nearest to it, of any list. The whole picture is seen: it is fitted
    into the model's square, not cropped.

    Args:
        path: An open_clip folder (``open_clip_config.json`` and weights of both towers), or an open_clip model name.
        tags: The tags to choose from, see ``read_tag_list``.
        top_k: Most tags of a picture.
        min_similarity: Least cosine of picture and text; None for no such limit.
        prompt: Text for a tag.
        pretrained: With a model name: open_clip's weight tag.
        device: See ``pick_device``.
        dtype: Dtype of the computation, see ``autocast``.

    Raises:
        FileNotFoundError: The folder lacks config or weights.
        ValueError: ``top_k`` is below 1, or the prompt has no place for the tag.
    """

    def __init__(
        self,
        path: str,
        tags: str | Path | Sequence[str] = "common",
        top_k: int = 20,
        min_similarity: float | None = None,
        prompt: str = "a photo of {}",
        pretrained: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        if "{}" not in prompt:
            raise ValueError(f"prompt is {prompt!r}; it needs {{}} where the tag goes")
        self.tags = read_tag_list(tags)
        self.top_k, self.min_similarity, self.prompt = top_k, min_similarity, prompt
        self.device, self.dtype = pick_device(device), dtype
        self.model, self._tokenize = _open_clip(path, pretrained)
        self.model.eval().requires_grad_(False).to(self.device)
        size = self.model.visual.image_size
        self.image_size: int = size if isinstance(size, int) else size[0]
        mean, std = self.model.visual.image_mean, self.model.visual.image_std
        self._mean, self._std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        self._texts: Tensor | None = None

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], names: Sequence[PictureName] | None = None) -> list[Tags]:
        """See :class:`mg_llava.detection.tags.Tagger`; nearest tags first."""
        if not images or not self.tags:
            return [()] * len(images)
        if self._texts is None:
            self._texts = self._encode_tags()
        pixels = torch.stack([self._view(image) for image in images]).to(self.device)  # (N, 3, S, S)
        with autocast(self.device, self.dtype):
            features = self.model.encode_image(pixels)
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        similarity = (features @ self._texts.T).cpu()  # (N, D) @ (D, T) -> (N, T)
        least = -2.0 if self.min_similarity is None else self.min_similarity
        values, places = torch.sort(similarity, descending=True, stable=True)
        rows = zip(values[:, : self.top_k].tolist(), places[:, : self.top_k].tolist(), strict=True)
        return [tuple(self.tags[i] for value, i in zip(*row, strict=True) if value >= least) for row in rows]

    def _encode_tags(self) -> Tensor:
        """(T, D) float32 unit vectors of the tags' texts."""
        parts = []
        for start in range(0, len(self.tags), _TEXT_BATCH):
            prompts = [self.prompt.format(tag) for tag in self.tags[start : start + _TEXT_BATCH]]
            with autocast(self.device, self.dtype):
                part = self.model.encode_text(self._tokenize(prompts).to(self.device))
            parts.append(torch.nn.functional.normalize(part.float(), dim=-1))
        return torch.cat(parts)

    def _view(self, image: Image.Image) -> Tensor:
        """(3, S, S) float32: the picture fitted into the square, normalized; the rest has the mean color."""
        scale = self.image_size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        fitted = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255  # (h, w, 3) -> (3, h, w)
        view = torch.zeros(3, self.image_size, self.image_size)
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        view[:, top : top + height, left : left + width] = (pixels - self._mean) / self._std
        return view


def _open_clip(path: str, pretrained: str | None) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """An OpenCLIP model and its tokenizer."""
    import open_clip

    folder = Path(path)
    if not folder.is_dir():
        is_local = not path.startswith("hf-hub:")
        if is_local and "/" in path:
            raise FileNotFoundError(f"open_clip folder {path} does not exist")
        if is_local and pretrained is None:
            raise ValueError(f"{path!r} is a model name; say which weights with pretrained=..., or give a folder")
        with safe_torch_load():
            return open_clip.create_model(path, pretrained=pretrained), open_clip.get_tokenizer(path)
    config = folder / "open_clip_config.json"
    weights = [folder / f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.bin")]
    found = next((file for file in weights if file.is_file()), None)
    if not config.is_file() or found is None:
        raise FileNotFoundError(
            f"{folder} needs open_clip_config.json and {' or '.join(file.name for file in weights)}"
        )
    settings = json.loads(config.read_text())
    if not settings.get("model_cfg", settings).get("text_cfg"):
        raise ValueError(f"{config} has no text_cfg: tagging needs both towers of CLIP")
    with safe_torch_load():
        model = open_clip.create_model(f"local-dir:{folder}")
    print_log(f"zero-shot tagger: {type(model).__name__} from {found}", logger="current")
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")
