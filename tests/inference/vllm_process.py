"""Run by a Python that has vLLM: what the plugin's processor makes of two pictures, as a line of JSON.

``python vllm_process.py FOLDER BOXES``; one list of results for each item of BOXES, which share a cache.
"""

import json
import sys

import numpy as np
from PIL import Image
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
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
    print(json.dumps(found))


if __name__ == "__main__":
    main()
