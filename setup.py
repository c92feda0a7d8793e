"""Package metadata, pins and extras of mg_llava."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "mg_llava" / "__init__.py").read_text()).group(1)

# XTuner 0.2.0 pins transformers 4.48.0, mmengine 0.10.6 and bitsandbytes 0.45.0 itself; torch 2.5.1 is the release
# that those were made for (bitsandbytes 0.45.0 does not import beside newer ones).
INSTALL = [
    "torch==2.5.1",
    "torchvision==0.20.1",
    "xtuner==0.2.0",
    "mmengine==0.10.6",
    "transformers==4.48.0",
    "open_clip_torch==3.3.0",
    "timm==1.0.31",
    "peft==0.21.2",
    "safetensors",
    "fsspec",
    "accelerate",
    "jinja2",
    "tqdm",
    "psutil",
    "protobuf",  # reads tokenizer.model, which is all that Vicuna's folder has of a tokenizer
    "setuptools<81",  # mmengine still imports pkg_resources
]

EXTRAS = {
    "deepspeed": ["deepspeed==0.16.2"],
    "quantization": ["bitsandbytes==0.45.0"],
    "flash": ["flash-attn"],
    "liger": ["liger-kernel==0.5.2"],  # CUDA alone
    "gguf": ["gguf"],
    "parquet": ["pyarrow"],
    "ray": ["ray==2.60.0"],
    "video": ["av>=14.1,<16"],  # older ones do not say how frames are turned, lmms-eval does not take newer ones
    "lmms": ["lmms-eval==0.7.3"],
    "detect": ["scikit-image", "scipy"],
    "detect-eval": ["pycocotools==2.0.11"],
    "demo": ["scikit-image", "scikit-learn", "scipy"],
    "eval": ["scikit-image", "scipy", "openpyxl", "pycocoevalcap==1.2"],
    "serve": [
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
        "sse-starlette==3.7.0",
        "pydantic>=2",
        "prometheus_client",
        "httpx",
    ],
    "web": ["fastapi==0.165.0", "uvicorn==0.54.0", "sse-starlette==3.7.0", "pydantic>=2"],
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb"],
    "swanlab": ["swanlab"],
    "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "openai", "playwright"],
}

setup(
    name="mg_llava",
    version=VERSION,
    description="MG-LLaVA (arXiv 2406.17770) as plug-in modules for stock XTuner",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mg_llava", "mg_llava.*"]),
    package_data={
        "mg_llava": [
            "py.typed",
            "detection/names/*.txt",
            "evaluation/*.jinja",
            "inference/web/page/*",
            "inspection/doctor/*.tsv",
            "data/synthesis/*.json",
            "models/published/*.json",
        ]
    },
    python_requires=">=3.10,<3.13",
    install_requires=INSTALL,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["mg-llava = mg_llava.__main__:main"],
        "lmms_eval.models": ["mg_llava = mg_llava.evaluation.lmms:manifest"],
        "vllm.general_plugins": ["mg_llava = mg_llava.hf.vllm_plugin:register"],
        "torch.backends": ["mg_llava = mg_llava.compat:await_xtuner"],
    },
)
