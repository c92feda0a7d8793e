"""The three stages of TinyGroundingGPT, each of which starts from the one before, and their miniature.

Learning rates, batches and epochs are GroundingGPT's, where the paper names none.
"""

from mmengine.config import read_base

from mg_llava.data.boxes.augment import CropAugmentation

with read_base():
    from .data.grounding import grounding, regions_global, regions_local, regions_perception
    from .data.nano import nano_stage1, nano_stage2
    from .llms import nano as nano_llm
    from .nano import nano_settings
    from .run import instruct, pretrain
    from .systems.grounding_gpt import grounding_gpt
    from .vision import clip_l_336_convnext_l_768
    from .vision import nano as nano_vision

_bins = dict(text=dict(style="bins", bins=64), context=0.5)


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


def nano_grounding(stage, *, arm="choices", before=None, model=None, **changes):
    """A stage of the miniature by the name of its builder; ``arm`` says which questions stage 2 asks.

    The low-resolution encoder alone, in which a crop shows more than a picture.
    """
    llm = dict(nano_llm, llm_name_or_path="data/nano/generated/grounding/llm")
    system = grounding_gpt(llm, nano_vision, **{"fusion": None, "regions": _bins, **(model or {})})
    shared = dict(nano_settings, context_length=384, evaluation=None)
    shared["dataset"] = dict(budget=dict(long_text_margin=None), boxes=dict(crop_augmentation=None))
    if stage == "object_pretrain":
        captions = {name: path for name, path in nano_stage1.items() if name != "box_path"}
        return object_pretrain(system, captions, **{**shared, "lr": 4e-3, "max_epochs": 2, **changes})
    start = dict(shared, lr=1e-3, before=before)
    if stage == "local_alignment":
        return local_alignment(system, grounding(arm), **{**start, "max_epochs": 3, **changes})
    instructions = {name: path for name, path in nano_stage2.items() if name != "box_path"}
    instructions["name"] = "instructions"
    mixture = dict(sources=[grounding("captions"), grounding(arm), instructions])
    return global_alignment(system, mixture, **{**start, **changes})
