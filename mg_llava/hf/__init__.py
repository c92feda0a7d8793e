"""Loading and using the model with transformers alone; importing this registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from mg_llava.compat import auto_models
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.hf.keys import hf_key, own_key
from mg_llava.hf.modeling import MGLLaVAForConditionalGeneration
from mg_llava.hf.processing import MGLLaVAProcessor

AutoConfig.register(MGLLaVAConfig.model_type, MGLLaVAConfig, exist_ok=True)
for _auto in auto_models():
    _auto.register(MGLLaVAConfig, MGLLaVAForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(MGLLaVAConfig, slow_image_processor_class=MGLLaVAImageProcessor, exist_ok=True)
AutoProcessor.register(MGLLaVAConfig, MGLLaVAProcessor, exist_ok=True)

__all__ = [
    "MGLLaVAConfig",
    "MGLLaVAForConditionalGeneration",
    "MGLLaVAImageProcessor",
    "MGLLaVAProcessor",
    "hf_key",
    "own_key",
]
