"""The layout of Ziya-Visual-Lyrics, the published weights of Lyrics, under our names."""

import re

from mg_llava.models.weights.stored import TensorMap

_NAMES = (
    (r"query_tokens", r"mq_former.query_tokens"),
    (r"qformer\.(?:bert\.)?embeddings\.(word|position)_embeddings\.weight", r"mq_former.\1_embeddings.weight"),
    (r"qformer\.(?:bert\.)?embeddings\.LayerNorm\.(.+)", r"mq_former.qformer.layernorm.\1"),
    (
        r"qformer\.(?:bert\.)?encoder\.layer\.(\d+)\.crossattention\.(.+)",
        r"mq_former.qformer.encoder.layer.\1.crossattention.attentions.0.\2",
    ),
    (
        r"qformer\.(?:bert\.)?encoder\.layer\.(\d+)\.detection_crossattention\.(.+)",
        r"mq_former.qformer.encoder.layer.\1.crossattention.attentions.1.\2",
    ),
    (r"qformer\.(?:bert\.)?encoder\.layer\.(.+)", r"mq_former.qformer.encoder.layer.\1"),
    (r"qformer\.cls\.predictions\.transform\.(.+)", r"heads.transform.\1"),
    (r"qformer\.cls\.predictions\.decoder\.weight", r"heads.decoder.weight"),
    (r"qformer\.cls\.predictions\.bias", r"heads.decoder.bias"),
    (r"(vision_proj|text_proj|itm_head)\.(.+)", r"heads.\1.\2"),
    (r"temp", r"heads.temp"),
    (r"language_projection\.(.+)", r"projector.model.0.\1"),
    (r"language_model\.(.+)", r"llm.\1"),
)
"""Names of the published weights, as patterns of the whole name, and ours; the first that fits counts."""

_OUTSIDE = ("vision_model.", "ram.", "grounding_dino.")
"""What belongs to the frozen image encoder, tagger and detector, which have folders of their own."""
_UNUSED = (".position_ids", "qformer.cls.predictions.decoder.bias")
"""Buffers, and the second name of a tensor."""


def is_published_lyrics(tensors: TensorMap) -> bool:
    """Whether tensors have the names of the published weights of Lyrics."""
    return "query_tokens" in tensors and any(".detection_crossattention." in name for name in tensors)


def name_published_lyrics(tensors: TensorMap) -> tuple[TensorMap, list[str]]:
    """Published tensors under our names, and the names of those that belong elsewhere; unknown ones stay as they are.

    LAVIS writes ``self`` for the inner part of an attention, transformers ``attention``.
    """
    named: TensorMap = {}
    ignored = []
    for name, tensor in tensors.items():
        if name.startswith(_OUTSIDE) or name.endswith(_UNUSED):
            ignored.append(name)
            continue
        fitting = (re.sub(pattern, ours, name) for pattern, ours in _NAMES if re.fullmatch(pattern, name))
        ours = next(fitting, name)
        named[ours.replace(".self.", ".attention.") if ours.startswith("mq_former.") else ours] = tensor
    return named, ignored
