"""What the configuration of a Hugging Face folder says of the weights in it."""

from pathlib import Path

import torch

from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.layout import Shape
from mg_llava.models.weights.folders import read_config

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
"""What of a folder is copied beside the weights."""


def expected_weights(folder: Path, trust_remote_code: bool = False) -> tuple[dict[str, Shape], dict[str, str]]:
    """Names and shapes of the parameters of the LLM that a folder's configuration describes.

    Returns:
        Shape by name; and further names of tied weights with the name they stand for.

    Raises:
        ConversionError: If the folder holds no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        text = read_config(folder).get("text_config")
        if text is None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:  # a folder of the whole model
            config = AutoConfig.for_model(**text)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise ConversionError(f"{folder} holds no causal LM: {str(error).splitlines()[0]}") from error
    model.tie_weights()
    names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    every = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(parameter.shape) for name, parameter in every.items() if names[id(parameter)] == name}
    tied = {name: names[id(parameter)] for name, parameter in every.items() if names[id(parameter)] != name}
    return shapes, tied
