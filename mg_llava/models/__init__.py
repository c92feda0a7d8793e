"""The model and its parts: tensors in, tensors out."""

from mg_llava.models.box_projector import RoIAlignBoxProjector
from mg_llava.models.encoders import CLIPEncoder, OpenCLIPConvNeXtEncoder, StageEncoder, TimmEncoder
from mg_llava.models.fusion import ConvGateFusion
from mg_llava.models.language_model import build_language_model
from mg_llava.models.mg_llava import MGLLaVA
from mg_llava.models.projectors import MLPProjector

__all__ = [
    "CLIPEncoder",
    "ConvGateFusion",
    "MGLLaVA",
    "MLPProjector",
    "OpenCLIPConvNeXtEncoder",
    "RoIAlignBoxProjector",
    "StageEncoder",
    "TimmEncoder",
    "build_language_model",
]
