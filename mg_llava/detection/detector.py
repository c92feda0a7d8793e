"""The base of all detectors."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from PIL import Image

from mg_llava.data.records.schema import NO_BOXES, BoxRecord
from mg_llava.detection.boxes import tidy_boxes
from mg_llava.detection.tags import PictureName, Tags

Size = tuple[int, int]
"""Width and height of a picture in pixels."""


class Detector:
    """Finds boxes in pictures.

    ``prepare`` is called in several threads, ahead of time; ``detect`` in one at a time. The boxes of a picture do not
    depend on the pictures beside it.

    Attributes:
        needs_tags: Whether it looks for given tags; pictures without tags get no boxes then.
        needs_names: Whether it knows pictures by name, so that equal pictures may have different boxes.
    """

    needs_tags = True
    needs_names = False

    def prepare(self, image: Image.Image) -> Any:
        """An RGB picture in the form that ``detect`` takes."""
        raise NotImplementedError

    def shape(self, size: Size) -> Hashable:
        """Pictures with the same value go through the network together."""
        return ()

    def detect(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """Raw boxes of each picture, in original pixels; they may reach out of it.

        Args:
            prepared: Of ``prepare``.
            sizes: Widths and heights.
            tags: What to look for in each.
            names: What they are known as; empty where they are not.
        """
        raise NotImplementedError

    @torch.no_grad()
    def find(
        self, prepared: Sequence[Any], sizes: Sequence[Size], tags: Sequence[Tags], names: Sequence[PictureName]
    ) -> list[BoxRecord]:
        """As ``detect``, with pictures that need no look left out, and boxes clipped to the pictures."""
        asked = [i for i in range(len(sizes)) if tags[i] or not self.needs_tags]
        found: dict[int, BoxRecord] = {}
        if asked:
            chosen: Any = [[values[i] for i in asked] for values in (prepared, sizes, tags, names)]
            found = dict(zip(asked, self.detect(*chosen), strict=True))
        return [tidy_boxes(found[i], size) if i in found else NO_BOXES for i, size in enumerate(sizes)]

    def __call__(
        self, images: Sequence[Image.Image], tags: Sequence[Tags] = (), names: Sequence[PictureName] = ()
    ) -> list[BoxRecord]:
        """Boxes of RGB pictures, clipped to them, best score first; other arguments as of ``detect`` where needed."""
        prepared = [self.prepare(image) for image in images]
        sizes = [image.size for image in images]
        return self.find(prepared, sizes, tags or [()] * len(sizes), names or [PictureName()] * len(sizes))
