"""The parts of both stages of Lyrics. Builder functions, as that of MG-LLaVA."""

from mmengine.config import read_base

from mg_llava.data import PictureProcessor, PieceWriter
from mg_llava.models import (
    AlignmentLoss,
    CaptionLoss,
    Lyrics,
    LyricsHeads,
    LyricsPretrain,
    MLPProjector,
    MQFormer,
    PieceReader,
    SpatialLoss,
)

with read_base():
    from ..parts import language, part


def lyrics_pretrain(
    llm, vision, *, losses=(AlignmentLoss, CaptionLoss, SpatialLoss), heads=LyricsHeads, items=None, **settings
):
    """Stage 1, without LLM: of ``llm``, a row of ``llms.py``, the tokenizer alone is read.

    ``losses`` are classes or dicts with weights, ``items`` settings of ``PieceWriter``: ``dict(items=False)`` leaves
    the items out of captions; ``settings`` as for ``lyrics``.
    """
    system = _system(llm, vision, reads=dict(reads="caption", **(items or {})), **settings)
    own = dict(type=LyricsPretrain, llm=None, heads=part(heads), losses=[part(loss) for loss in losses])
    return {**system, "model": {**system["model"], **own}}


def lyrics(llm, vision, *, projector=None, **settings):
    """Stage 2: the question enters the MQ-Former, whose queries are the tokens of a picture.

    ``llm`` is a row of ``llms.py``; ``vision`` has ``image_size`` of the pictures, ``visual_encoder`` and, where they
    are there, ``detector``, ``segmenter`` and ``box_reader``; ``pieces`` is the folder or hub name of a BERT
    tokenizer; ``mq_former`` has settings of ``MQFormer``, of which ``queries`` has a number for each source;
    ``picture`` has settings of the picture processor; others are arguments of ``Lyrics``.
    """
    system = _system(llm, vision, reads=dict(reads="question"), **settings)
    own = dict(type=Lyrics, projector=part(projector) or dict(type=MLPProjector, depth=1))
    return {**system, "model": {**system["model"], **own}}


def _system(llm, vision, *, reads, pieces, mq_former=None, picture=None, **options):
    """What both stages have."""
    model, text = language(**llm)
    encoders = {name: part(given) for name, given in vision.items() if name != "image_size"}
    processor = dict(type=PictureProcessor, **{"image_size": vision["image_size"], **(picture or {})})
    parts = dict(
        llm=model,
        **encoders,
        mq_former=dict(type=MQFormer, **(mq_former or {})),
        pieces=dict(type=PieceReader, vocabulary=pieces),
        **options,
    )
    writer = dict(type=PieceWriter, vocabulary=pieces, **reads)
    return dict(**text, picture_processor=processor, model=parts, extra=writer)
