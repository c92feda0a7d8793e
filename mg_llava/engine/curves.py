"""Curves of a run in a program that draws them: TensorBoard, Weights & Biases or SwanLab, beside mmengine's JSON.

They have all that is logged: losses, learning rate, gates, norms of tokens, gradient norms, speed.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from mmengine.visualization import LocalVisBackend, Visualizer

Curves = Literal["tensorboard", "wandb", "swanlab"]

_BACKENDS = {
    "tensorboard": ("mmengine.visualization", "TensorboardVisBackend"),
    "wandb": ("mmengine.visualization", "WandbVisBackend"),
    "swanlab": ("swanlab.integration.mmengine", "SwanlabVisBackend"),
}
_RUN = {"wandb": "name", "swanlab": "experiment_name"}
"""Arguments that name a run."""


class CurvesVisualizer(Visualizer):
    """Built before the model, so that a program that is absent or cannot be reached is told at once.

    Args:
        curves: The program; it has its own way to be told of accounts, servers and projects.
        name: Of this object.
        save_dir: Where TensorBoard's files go, in the work directory.

    Raises:
        ValueError: ``curves`` is unknown.
        ImportError: Its package is not installed.
    """

    def __init__(self, curves: Curves, name: str = "curves", save_dir: str | None = None) -> None:
        if curves not in get_args(Curves):
            raise ValueError(f"curves is {curves!r}; allowed: {', '.join(map(repr, get_args(Curves)))}, or None")
        if find_spec(curves) is None:
            raise ImportError(
                f"curves={curves!r} needs the package {curves}, which is not installed: pip install "
                f"'mg_llava[{curves}]', or leave curves out (the JSON lines in vis_data/ of the work directory stay)"
            )
        module, backend = _BACKENDS[curves]
        settings: dict[str, Any] = {"type": getattr(import_module(module), backend)}
        if curves in _RUN and save_dir is not None:
            settings["init_kwargs"] = {_RUN[curves]: Path(save_dir).parent.name}  # the work directory
        super().__init__(name, vis_backends=[{"type": LocalVisBackend}, settings], save_dir=save_dir)
