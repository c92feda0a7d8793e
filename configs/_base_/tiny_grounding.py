"""The three stages of TinyGroundingGPT, each of which starts from the one before, and their miniature.

Learning rates, batches and epochs are GroundingGPT's, where the paper names none.
"""

from mmengine.config import read_base

from mg_llava.data.boxes.augment import CropAugmentation
from mg_llava.models import ConvGateFusion

with read_base():
    from .data.grounding import grounding, regions_global, regions_local, regions_perception
    from .data.nano import nano_stage2
    from .llms import nano as nano_llm
    from .nano import nano_settings
    from .run import instruct, pretrain
    from .systems.grounding_gpt import grounding_gpt
    from .vision import clip_l_336_convnext_l_768
    from .vision import nano as nano_vision

_cells = dict(text=dict(style="kosmos2"), context=0.1)


def object_pretrain(system, data=regions_perception, *, gpus=1, batch_size=None, **settings):
    """Stage 1, objects and relations: short answers train what connects."""
    return pretrain(system, data, batch_size=batch_size or 256 // gpus, **_as_written(system, settings))


def local_alignment(system, data=regions_local, *, before, gpus=1, batch_size=None, **settings):
    """Stage 2, local knowledge: words, coordinates and images of the same regions train all but the encoders."""
    start = dict(pretrained_pth=f"./work_dirs/{before}", batch_size=batch_size or 128 // gpus)
    return instruct(system, data, **start, **_as_written(system, settings))


def global_alignment(system, data=regions_global, **settings):
    """Stage 3, global knowledge: detailed captions with coordinates, and instructions; as stage 2 but for its data."""
    return local_alignment(system, data, **settings)


def _as_written(system, settings):
    """Settings with which object images stand where the records say, not after each box, and change a little."""
    processor = system["picture_processor"]
    own = dict(processor, regions=dict(processor["regions"], attach="placeholders"))
    changed = dict(crop_augmentation=dict(type=CropAugmentation))
    return {**settings, "dataset": {"picture_processor": own, "boxes": changed, **settings.get("dataset", {})}}


def qwen_grounding(llm):
    """The system of about 3B parameters."""
    return grounding_gpt(llm, clip_l_336_convnext_l_768)


def nano_grounding(stage, *, arm="choices", gate=False, before=None, model=None, **changes):
    """A stage of the miniature by the name of its builder; ``arm`` says which questions stage 2 asks.

    The low-resolution encoder alone, in which a crop shows more than a picture; with ``gate`` both, through the
    Conv-Gate, which starts half open, and a quarter of the learning rate in stage 1 so that no seed stays on its
    plateau.
    """
    llm = dict(nano_llm, llm_name_or_path="data/nano/region_llm")
    base = dict(fusion=dict(type=ConvGateFusion, gate_start=0.5) if gate else None)
    system = grounding_gpt(llm, nano_vision, **{**base, "regions": _cells, **(model or {})})
    shared = dict(nano_settings, context_length=384, evaluation=None)
    shared["dataset"] = dict(budget=dict(long_text_margin=None), boxes=dict(crop_augmentation=None))
    if stage == "object_pretrain":
        captions = dict(grounding("captions"), draw=dict(repeat=0.2))
        mixture = dict(sources=[captions, grounding("perception"), grounding("objects")])
        # of what a crop holds a projector learns little in fewer or smaller steps
        own = dict(batch_size=8, lr=2e-3 if gate else 8e-3)
        return object_pretrain(system, mixture, **{**shared, **own, **changes})
    start = dict(shared, lr=1e-3, lr_mult=dict(projector=4), before=before)
    if stage == "local_alignment":
        return local_alignment(system, grounding(arm), **{**start, "max_epochs": 2, **changes})
    sources = [grounding("captions"), grounding(arm), _without_boxes(nano_stage2, "instructions")]
    mixture = dict(sources=[dict(source, draw=dict(repeat=0.4)) for source in sources])
    return global_alignment(system, mixture, **{**start, **changes})


def _without_boxes(files, name):
    return dict({key: path for key, path in files.items() if key != "box_path"}, name=name)
