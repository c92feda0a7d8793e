"""The model card of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from mg_llava import __version__
from mg_llava.compat import dtype_name

_CARD = Template("""---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- mg-llava
- multimodal
- object-recognition
$base_models---

# $title

$description Written by mg_llava $version.

| part | |
|---|---|
| LLM | $llm |
$parts| weights | $dtype |

## Use

$install

```python
$imports
model = AutoModelForImageTextToText.from_pretrained("$path", torch_dtype="auto"$trust)
processor = AutoProcessor.from_pretrained("$path"$trust)

conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
boxes = [[10, 20, 200, 180]]  # xyxy in pixels of the picture, from any detector; or None
inputs = processor(conversation=[conversation], images=["picture.jpg"], boxes=[boxes]).to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(processor.decode_answers(output, inputs["input_ids"])[0])
```

`device_map`, `load_in_4bit` and `load_in_8bit` work as usual; the LLM alone is quantized. Rows of a batch may have no,
one or several pictures; they are padded on the left.
$prompt
## Training, evaluation, limits

To be filled in by whoever trained the model: data, schedule, scores with the command that made them, known weaknesses,
and the license, which also depends on those of the LLM and the encoders.
""")

_NAMED = """
The processor writes the boxes of a picture before the question, as in training. Give what the detector of the training
finds, with names and scores: `{"boxes": [[10, 20, 200, 180]], "labels": ["dog"], "scores": [0.9]}`; without boxes the
prompt says that there are none.
"""

_DESCRIPTIONS = {
    "MGLLaVA": "A multimodal LLM that sees a picture at three granularities: a low-resolution encoder, a "
    "high-resolution encoder\nfused into its tokens by a gate, and one token for each detected object\n"
    "([MG-LLaVA, arXiv 2406.17770](https://arxiv.org/abs/2406.17770))."
}


def model_card(config: Mapping[str, Any], described: Any, standalone: bool, names_objects: bool = False) -> str:
    """Markdown with the architecture and a working example.

    Args:
        config: The training config; names of the hub are taken from it, paths are not.
        described: The ``MGLLaVAConfig`` of the folder.
        standalone: Whether the folder brings its own code.
        names_objects: Whether the boxes of a picture are written before the question.
    """
    model, text = config["model"], described.text_config
    name = public_name((model.get("llm") or {}).get("path"))
    return _CARD.substitute(
        title="MG-LLaVA" + (f" on {name.split('/')[-1]}" if name else ""),
        description=_DESCRIPTIONS.get(described.system, f"A multimodal LLM ({described.system})."),
        version=__version__,
        base_models=f"base_model: {name}\n" if name else "",
        llm=f"{name or text.model_type}, hidden size {text.hidden_size}",
        parts="".join(_row(part, spec, model.get(part)) for part, spec in described.parts.items()),
        dtype=str(getattr(described, dtype_name())).removeprefix("torch."),
        install=(
            "The folder brings its own code; read it, then load it with `trust_remote_code=True`. It needs `torch`, "
            "`torchvision`, `transformers` and `timm`."
            if standalone
            else "Needs the package `mg_llava`; no code of the folder is run."
        ),
        imports=("" if standalone else "import mg_llava.hf  # registers the model\n")
        + "from transformers import AutoModelForImageTextToText, AutoProcessor\n",
        prompt=_NAMED if names_objects else "",
        path="path/or/name",
        trust=", trust_remote_code=True" if standalone else "",
    )


def _row(name: str, spec: Mapping[str, Any], config: Any) -> str:
    """A line of the table of parts: the model's public name or its kind and, for an encoder, its sizes."""
    own = spec.get("architecture", {})
    kind = public_name((config or {}).get("path")) or own.get("name") or own.get("vision", {}).get("model_type")
    sizes = [f"{spec['image_size']} px"] if "image_size" in spec else []
    sizes += [f"{spec['tokens']} tokens"] if spec.get("tokens") else []
    return f"| {name.replace('_', ' ')} | {', '.join([kind or spec['type'], *sizes])} |\n"


def public_name(path: Any) -> str:
    """The path where it is a name of the hub, such as ``lmsys/vicuna-7b-v1.5``; else nothing."""
    text = str(path or "")
    parts = text.split("/")
    is_name = len(parts) == 2 and all(parts) and not text.startswith((".", "~")) and not Path(parts[0]).exists()
    return text if is_name else ""
