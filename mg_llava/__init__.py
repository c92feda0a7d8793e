"""MG-LLaVA: a multimodal LLM that sees at three granularities, as plug-in modules for XTuner and mmengine."""

__version__ = "0.1.0"
