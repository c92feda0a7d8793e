"""Small detectors and taggers, built from their configs and written to disk in the real formats."""

import json
from pathlib import Path

import torch
from torch import nn

from mg_llava.profiling.boxes_pipeline import write_small_owlv2

SIDE = 64
"""Side of the small OWLv2's input in pixels, in patches of 8."""


def _spread(model: nn.Module, seed: int, std: float) -> None:
    """Weights large enough that pictures and texts make a difference."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "position" not in name:
            parameter.data.normal_(0, std, generator=generator)


def write_owlv2(folder: Path, limit: int = 32) -> str:
    """An OWLv2 with a character-level tokenizer of CLIP's kind; ``limit`` tokens a prompt."""
    return write_small_owlv2(folder, SIDE, 8, widths=(32, 24), layers=2, limit=limit, spread=0.3)


def write_owlv2_again(folder: str, limit: int) -> str:
    """The model beside ``folder`` with another limit of tokens."""
    return write_owlv2(Path(folder).with_name(f"owlv2_{limit}"), limit)


def write_grounding_dino(folder: Path, limit: int = 64) -> str:
    """A Grounding DINO over a small Swin and BERT, with a character-level tokenizer of BERT's kind."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        SwinConfig,
    )

    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [f"[unused{number}]" for number in range(1100)]
    # The network knows these by their numbers in BERT's vocabulary.
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for place, word in places.items():
        words[place] = word
    for number, letter in enumerate(letters):
        words[200 + number], words[300 + number] = letter, f"##{letter}"
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=limit).save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=limit,
        ).to_dict(),
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=64,
        max_text_len=limit,
    )
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config)
    _spread(model, 2, 0.15)
    model.save_pretrained(folder)
    return str(folder)


def write_open_clip(folder: Path) -> str:
    """An OpenCLIP model of a small ConvNeXt and a small text tower, in open_clip's folder format."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {
                "timm_model_name": "test_convnext",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 64,
            },
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    name = "mg_llava_toy_convnext"
    open_clip.factory._MODEL_CONFIGS[name] = config["model_cfg"]
    model = open_clip.create_model(name)
    del open_clip.factory._MODEL_CONFIGS[name]
    _spread(model, 3, 0.2)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return str(folder)


def write_detr(folder: Path, kind: str = "detr", queries: int = 6, size: int = 64) -> Path:
    """A closed-set detector of the DETR family with three classes, on a toy ResNet."""
    import torch
    from transformers import AutoConfig, AutoModelForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    width = 32 if kind == "deformable_detr" else 16  # its norms have 32 groups
    sizes = {"d_model": width, "encoder_layers": 1, "decoder_layers": 2, "num_queries": queries}
    widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    own: dict = {}
    if kind == "rt_detr":
        backbone.out_features = ["stage2", "stage3", "stage4"]
        own = {"encoder_hidden_dim": 16, "encoder_in_channels": [12, 16, 24], "decoder_in_channels": [16, 16, 16]}
        own |= {"num_feature_levels": 3, "num_denoising": 4}
    elif kind == "deformable_detr":
        own = {"num_feature_levels": 1, "disable_custom_kernels": True}
    config = AutoConfig.for_model(
        kind,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_labels=3,
        **sizes,
        **widths,
        **own,
    )
    torch.manual_seed(5)
    model = AutoModelForObjectDetection.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": size, "width": size}}
    processor["image_processor_type"] = "DetrImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_cells(folder: Path, paths: dict[str, str]) -> Path:
    """A detector of the cells of the toy ConvNeXt, with two classes."""
    from safetensors.torch import save_file

    from mg_llava.models.encoders.cell_detector import CellHead
    from tests import toy

    folder.mkdir(parents=True, exist_ok=True)
    about = {"backbone": paths["convnext"], "classes": ["dog", "cat"], "width": 8}
    (folder / "config.json").write_text(json.dumps(about))
    head = CellHead(toy.STAGE_CHANNELS[-1], 8, 3)
    _spread(head, 6, 0.3)
    save_file(head.state_dict(), folder / "model.safetensors")
    return folder
