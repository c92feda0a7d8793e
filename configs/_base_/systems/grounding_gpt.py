"""TinyGroundingGPT: MG-LLaVA's encoders, coordinates as text, and object images in place of box tokens."""

from mmengine.config import read_base

from mg_llava.models import FramePooling

with read_base():
    from .mg_llava import mg_llava


def grounding_gpt(llm, vision, *, side=4, regions=None, **options):
    """The keys of a system, as of ``mg_llava``.

    ``side`` x ``side`` tokens of an object image become one: 36 of 24 x 24. ``regions`` are settings of
    ``mg_llava.data.text.regions.RegionUse``; a box in a question brings its object image.
    """
    parts = dict(box_projector=None, object_pooler=dict(type=FramePooling, side=side))
    picture = dict(regions=dict(attach="coordinates", **(regions or {})))
    return mg_llava(llm, vision, **{**parts, "picture": picture, **options})
