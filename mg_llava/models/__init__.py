"""The model and its parts: tensors in, tensors out."""

from mg_llava.models.encoders.all import CLIPEncoder, OpenCLIPConvNeXtEncoder, StageEncoder, TimmEncoder
from mg_llava.models.fusion.conv_gate import ConvGateFusion
from mg_llava.models.llm import build_language_model
from mg_llava.models.objects.roi_align import RoIAlignBoxProjector
from mg_llava.models.projectors import MLPProjector
from mg_llava.models.systems.mg_llava import MGLLaVA

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
