"""vLLM's general plugin: a stock ``vllm serve FOLDER`` then knows folders of ours. vLLM is imported when it asks."""

ARCHITECTURE = "MGLLaVAForConditionalGeneration"


def register() -> None:
    """Register config, processor and model; vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    import mg_llava.hf  # noqa: F401

    ModelRegistry.register_model(ARCHITECTURE, "mg_llava.hf.vllm_model:MGLLaVAForVLLM")
