"""Run by a Python that has vLLM: what the plugin's processor makes of two pictures, as a line of JSON.

``python vllm_process.py FOLDER BOXES FILE FILE``; results for each item of BOXES, which share a cache, and the pixels
of two files as a request brings them.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.media import ImageMediaIO
from vllm.plugins import load_general_plugins

PROMPT = "<s>USER: <image>\n<image>\nWhat is there? ASSISTANT:"


def main() -> None:
    folder, boxes = sys.argv[1], json.loads(sys.argv[2])
    load_general_plugins()
    config = ModelConfig(model=folder, tokenizer=folder, dtype="float32", limit_mm_per_prompt={"image": 2})
    processor, cache = MULTIMODAL_REGISTRY.create_processor(config), MultiModalProcessorOnlyCache(config)
    draws = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3)) for seed in range(2)]
    pictures = [Image.fromarray(draw.astype(np.uint8)) for draw in draws]
    ids = processor.info.get_tokenizer()(PROMPT, add_special_tokens=False)["input_ids"]
    found = []
    for given in boxes:
        items = processor.info.parse_mm_data({"image": pictures})
        made = processor(ids, items, hf_processor_mm_kwargs={"boxes": given}, cache=cache)
        found.append({"length": len(made["prompt_token_ids"]), "keys": made["mm_hashes"]["image"]})
    read = [ImageMediaIO().load_bytes(Path(file).read_bytes()) for file in sys.argv[3:]]
    made = processor(ids, processor.info.parse_mm_data({"image": read}), cache=cache)
    seen = [item["pixel_values"].data.numpy() for item in made["mm_kwargs"]["image"]]
    print(json.dumps([found, [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in seen]]))


if __name__ == "__main__":
    main()
