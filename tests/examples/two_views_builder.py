"""The parts of TwoViews, for leaves."""

from mmengine.config import read_base

from mg_llava.data import PictureProcessor
from mg_llava.models import MLPProjector

with read_base():
    from ..parts import language, part


def two_views(llm, vision, *, image_size, projector=MLPProjector, **options):
    """The keys of a system; ``vision`` has the encoders ``first_encoder`` and ``second_encoder``."""
    model, text = language(**llm)
    model = dict(type="mg_llava.TwoViews", llm=model, **vision, projector=part(projector), **options)
    return dict(**text, picture_processor=dict(type=PictureProcessor, image_size=image_size), model=model)
