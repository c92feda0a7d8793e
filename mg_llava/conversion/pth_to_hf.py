"""``xtuner convert pth_to_hf``: XTuner loads the checkpoint into a model, and this writes all of it.

What XTuner does before is its own: it holds the whole model in memory, runs code that a ``.pth`` may have in it, and
reads DeepSpeed folders in float16 even with ``--fp32``. ``tools/convert_checkpoint.py`` does none of these.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mg_llava.conversion.convert import TARGETS, Target, write
from mg_llava.conversion.expected import expected_parts
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.inputs import name_tensors
from mg_llava.conversion.prepare import complete
from mg_llava.conversion.settings import settings_of
from mg_llava.conversion.types import ConversionOptions
from mg_llava.models.weights.stored import map_state_dict
from mg_llava.registry import EXPORTERS

SAVE_FORMATS: dict[str, Target] = {"xtuner": "hf", "huggingface": "hf", "official": "parts"}
"""Layout for each ``--save-format`` of XTuner's; its default must give a folder that is complete."""


@EXPORTERS.register_module()
def export_model(
    model: nn.Module,
    cfg: Any,
    save_dir: str | Path,
    fp32: bool = False,
    save_format: str = "xtuner",
    save_pretrained_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into which XTuner has loaded a checkpoint; what was not in the checkpoint is on the meta device.

    Args:
        model: The model.
        cfg: Its training config.
        save_dir: Folder to write, absent or empty.
        fp32: Write float32; float16 otherwise, as XTuner does.
        save_format: One of :data:`SAVE_FORMATS`.
        save_pretrained_kwargs: XTuner's options, of which ``max_shard_size`` counts; weights are always safetensors.

    Raises:
        ConversionError: As for :func:`mg_llava.conversion.convert`.
    """
    if save_format not in SAVE_FORMATS:
        raise ConversionError(f"unknown --save-format {save_format!r}; known: {', '.join(SAVE_FORMATS)}")
    settings = settings_of(cfg, str(getattr(cfg, "filename", None) or "the config"))
    saved = expected_parts(settings.model)
    state = {
        name: tensor
        for name, tensor in nn.Module.state_dict(model).items()
        if not tensor.is_meta and name.split(".", 1)[0] in saved
    }
    checkpoint = name_tensors(
        Path("the checkpoint"), "loaded by XTuner", map_state_dict(state), settings, settings.lora
    )
    options = ConversionOptions(
        dtype="float32" if fp32 else "float16",
        max_shard_size=(save_pretrained_kwargs or {}).get("max_shard_size", "2GB"),
    )
    source = complete(checkpoint, options, whole=True)
    write(source, Path(save_dir), SAVE_FORMATS[save_format], options)
    print_log(f"wrote {TARGETS[SAVE_FORMATS[save_format]]} in {save_dir}\n{source.report}", logger="current")
