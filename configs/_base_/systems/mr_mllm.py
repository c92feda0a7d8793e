"""The parts of MR-MLLM, an interpretation around LLaMA-Adapter V2: the paper's widths and depths are not published."""

from mmengine.config import read_base

from mg_llava.data import PerceptionPrompt, PictureProcessor
from mg_llava.models import MRMLLM, GatedPrompts, PromptBranch, SharedQueries

with read_base():
    from ..parts import language, part


def mr_mllm(
    llm,
    scene_encoder,
    detector,
    *,
    prompts=GatedPrompts,
    scene=PromptBranch,
    objects=PromptBranch,
    shared_queries=SharedQueries,
    refine=None,
    biases=None,
    perception=PerceptionPrompt,
    picture=None,
    **options,
):
    """The keys of a system; see ``mg_llava.py`` beside it.

    ``llm`` is a row of ``llms.py``, ``detector`` one of ``detectors.py`` or None, which leaves the object branch out.
    ``perception`` is the prompt that names detected objects, None for none.
    """
    model, text = language(**llm)
    detector = part(detector)
    scene_encoder = part(scene_encoder)
    size = 336 if detector is None else detector["image_size"]
    return dict(
        **text,
        picture_processor=dict(type=PictureProcessor, **{"image_size": size, **(picture or {})}),
        prompt_parts=[] if perception is None else [part(perception)],
        model=dict(
            type=MRMLLM,
            llm=model,
            scene_encoder=scene_encoder,
            detector=detector,
            prompts=part(prompts),
            biases=part(biases),
            scene=part(scene),
            objects=None if detector is None else part(objects),
            shared_queries=part(shared_queries),
            refine=part(refine),
            **options,
        ),
    )
