"""The parts of MG-LLaVA. A builder function, because plain inheritance copies nested dicts, so that another LLM in a
leaf would leave the old one in ``model``."""

from mmengine.config import read_base

from mg_llava.data import PictureProcessor
from mg_llava.models import ConvGateFusion, MGLLaVA, MLPProjector, RoIAlignBoxProjector

with read_base():
    from ..parts import language, part


def mg_llava(
    llm,
    vision,
    *,
    fusion=ConvGateFusion,
    box_projector=RoIAlignBoxProjector,
    projector=MLPProjector,
    merger=None,
    frame_pooler=None,
    object_pooler=None,
    picture=None,
    **options,
):
    """The keys of a system, which training, evaluation and chat read: model, picture processor, tokenizer, template.

    ``llm`` is a row of ``llms.py``, ``vision`` one of ``vision.py``. Other parts are a class, or a dict with settings;
    ``fusion=None`` and ``box_projector=None`` leave a branch out. ``picture`` are settings of the picture processor,
    ``options`` arguments of ``MGLLaVA``: ``packing=4096``, ``losses=[dict(type=LanguageLoss, kernel="liger")]``.
    """
    model, text = language(**llm)
    high = part(vision["high_res_encoder"])
    unread = fusion is None and box_projector is None
    return dict(
        **text,
        # pictures come in the size of the largest view, read or not, so that ablations see the same boxes
        picture_processor=dict(type=PictureProcessor, **{"image_size": high["image_size"], **(picture or {})}),
        model=dict(
            type=MGLLaVA,
            llm=model,
            low_res_encoder=part(vision["low_res_encoder"]),
            high_res_encoder=None if unread else high,
            fusion=part(fusion),
            projector=part(projector),
            box_projector=part(box_projector),
            merger=part(merger),
            frame_pooler=part(frame_pooler),
            object_pooler=part(object_pooler),
            **options,
        ),
    )
