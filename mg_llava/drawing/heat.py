"""Heat maps over pictures."""

import numpy as np
from PIL import Image

_STOPS = (
    (0.0, (0, 0, 40)),
    (0.35, (90, 20, 140)),
    (0.65, (230, 70, 50)),
    (0.85, (255, 170, 30)),
    (1.0, (255, 250, 190)),
)
"""Colors of the scale, from nothing to most."""


def draw_heat(image: Image.Image, heat: np.ndarray, most: float | None = None, weight: float = 0.6) -> Image.Image:
    """Lay a heat map over a picture.

    Args:
        image: The picture; not changed.
        heat: (height, width) of the picture, from 0 on.
        most: What the end of the scale stands for; the greatest value by default.
        weight: Share of the colors in the result.

    Raises:
        ValueError: The heat map is of another size.
    """
    if heat.shape != (image.height, image.width):
        raise ValueError(
            f"the heat map is {heat.shape[1]} x {heat.shape[0]}, the picture {image.width} x {image.height}"
        )
    top = float(heat.max(initial=0)) if most is None else most
    shares = np.clip(heat / top, 0, 1) if top > 0 else np.zeros(heat.shape)
    places = [place for place, _ in _STOPS]
    colors = np.stack([np.interp(shares, places, [color[part] for _, color in _STOPS]) for part in range(3)], axis=-1)
    ground = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray(np.rint((1 - weight) * ground + weight * colors).astype(np.uint8))
