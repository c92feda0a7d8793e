"""Toy models and data, built by code and written to disk in the real formats.

One canvas of 64 px: the low-resolution view has 28 px in patches of 14 (2 x 2 tokens), the high-resolution encoder a
last stage of 2 x 2 cells. Weights are random but seeded and large enough that every branch matters.
"""

import json
from pathlib import Path

import torch

CANVAS = 64
STAGE_CHANNELS = (8, 12, 16, 24)
CLIP_WIDTH = 16
LLM_WIDTH = 32
WORDS = ["<unk>", "<s>", "</s>", "<pad>"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", *"0123456789", ".", "dog", "cat", "a", "and", "##s"]
"""WordPiece vocabulary; [DEC] comes after it."""


def write_clip(folder: Path, image_size: int = 28, patch_size: int = 14) -> Path:
    """A CLIP vision model as a Hugging Face folder."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
        initializer_factor=4.0,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=image_size).save_pretrained(folder)
    return folder


def convnext_kwargs() -> dict:
    """Arguments of timm for the toy ConvNeXt."""
    return {"depths": (1, 1, 2, 1), "dims": STAGE_CHANNELS, "ls_init_value": 1.0}


def write_convnext(folder: Path, name: str = "convnext_large", safetensors: bool = True, kwargs: bool = True) -> Path:
    """An open_clip folder with a ConvNeXt trunk, a projection head and a piece of a text tower."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    trunk = timm.create_model(name, pretrained=False, num_classes=0, **convnext_kwargs())
    for parameter in trunk.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {f"visual.trunk.{key}": value.contiguous() for key, value in trunk.state_dict().items()}
    weights["visual.head.proj.weight"] = torch.randn(8, STAGE_CHANNELS[-1])
    weights["token_embedding.weight"] = torch.randn(5, 8)
    weights["logit_scale"] = torch.tensor(1.0)
    folder.mkdir(parents=True, exist_ok=True)
    if safetensors:
        save_file(weights, folder / "open_clip_model.safetensors")
    else:
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "image_size": CANVAS}
    if kwargs:
        vision["timm_model_kwargs"] = {
            key: list(v) if isinstance(v, tuple) else v for key, v in convnext_kwargs().items()
        }
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(folder: Path, vocabulary: int = 300) -> Path:
    """A byte-level BPE tokenizer with Llama's special tokens, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=WORDS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["USER: what is there? ASSISTANT: a digit, two digits"] * 8, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def write_llm(folder: Path, tokenizer: bool = True, layers: int = 2, tied: bool = False) -> Path:
    """A Llama with its tokenizer as a Hugging Face folder; ``tied``: its head is its word embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=LLM_WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_sam(folder: Path) -> Path:
    """A SAM of 32 px, 4 x 4 cells and 8 channels as a Hugging Face folder."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(6)
    vision = SamVisionConfig(
        **dict(hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32),
        **dict(patch_size=8, window_size=2, global_attn_indexes=[1], mlp_dim=24),
    )
    prompt = SamPromptEncoderConfig(hidden_size=8, image_size=32, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        **dict(hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8)
    )
    configs = dict(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(SamConfig(**{name: config.to_dict() for name, config in configs.items()})).save_pretrained(folder)
    return folder


def write_all(folder: Path) -> dict[str, str]:
    """All three folders; returns their paths as ``clip``, ``convnext`` and ``llm``."""
    return {
        "clip": str(write_clip(folder / "clip")),
        "convnext": str(write_convnext(folder / "convnext")),
        "llm": str(write_llm(folder / "llm")),
    }


def model_config(paths: dict[str, str], tuning: str = "frozen", **changes: object) -> dict:
    """Config of a whole toy model; ``changes`` replace its parts (``None`` leaves one out)."""
    config: dict = {
        "type": "mg_llava.MGLLaVA",
        "llm": {
            "type": "mg_llava.build_language_model",
            "path": paths["llm"],
            "tuning": tuning,
            "dtype": "float32",
            "gradient_checkpointing": False,
        },
        "low_res_encoder": {"type": "mg_llava.CLIPEncoder", "path": paths["clip"], "dtype": "float32"},
        "high_res_encoder": {
            "type": "mg_llava.OpenCLIPConvNeXtEncoder",
            "path": paths["convnext"],
            "image_size": CANVAS,
            "dtype": "float32",
        },
        "fusion": {"type": "mg_llava.ConvGateFusion"},
        "box_projector": {"type": "mg_llava.RoIAlignBoxProjector"},
        "projector": {"type": "mg_llava.MLPProjector"},
    }
    config.update(changes)
    return config


def build_model(paths: dict[str, str], tuning: str = "frozen", seed: int = 3, **changes: object) -> torch.nn.Module:
    """A whole toy model whose zero-initialized projections are filled, so that every branch counts."""
    from mg_llava.registry import MODELS

    torch.manual_seed(seed)
    model = MODELS.build(model_config(paths, tuning, **changes))
    for name in ("slow_proj", "fast_proj"):
        if hasattr(model.fuse_module, name):
            torch.nn.init.normal_(getattr(model.fuse_module, name).weight, std=0.3)
    return model


def make_batch(
    samples: list[tuple[int, int]], boxes_per_image: int = 3, seed: int = 0, canvas: int = CANVAS
) -> list[dict]:
    """Random instances for the collate function.

    Args:
        samples: For each sample the number of text ids and of pictures.
        boxes_per_image: Most boxes of a picture.
        seed: Seed of everything random.
        canvas: Side of the canvas in pixels.
    """
    generator = torch.Generator().manual_seed(seed)

    def randint(low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    instances = []
    for index, (length, pictures) in enumerate(samples):
        ids = randint(4, 300, (length,))
        ids[0] = 1
        labels = ids.clone()
        labels[: length // 2] = -100
        for at in range(pictures):
            ids[1 + at] = -200
            labels[1 + at] = -100
        corners = [randint(0, canvas // 2, (int(randint(0, boxes_per_image + 1, (1,))), 2)) for _ in range(pictures)]
        instances.append(
            {
                "id": f"sample_{index}",
                "input_ids": ids,
                "labels": labels,
                "images": [randint(0, 256, (3, canvas, canvas)).to(torch.uint8) for _ in range(pictures)],
                "boxes": [
                    torch.cat([corner, corner + randint(1, canvas // 2, tuple(corner.shape))], dim=1).float()
                    for corner in corners
                ],
            }
        )
    return instances


def add_pieces(instances: list[dict]) -> list[dict]:
    """The instances with items and a caption as word pieces for each picture, every one another."""
    from mg_llava.pieces import Item, WordPieces

    words, count = WordPieces(PIECES), 0
    for instance in instances:
        rows = []
        for _ in instance["images"]:
            items = [Item("dog", ("0.1", str(count % 10), "3", str(k))) for k in range(count % 3)]
            rows.append(words.caption(items, f"a dog and {count % 10} cats"))
            count += 1
        instance["extra"] = {"pieces": rows}
    return instances


def write_data(folder: Path, records: int = 16, seed: int = 0) -> dict[str, str]:
    """Pictures, records in LLaVA format and a box file; every fourth record is text, one has two pictures.

    Returns:
        ``data_path``, ``image_folder`` and ``box_path``, as the data set takes them.
    """
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    for number in range(records):
        row: dict = {"id": f"toy_{number}"}
        names = [] if number % 4 == 3 else [f"{number}_{k}.png" for k in range(2 if number == 1 else 1)]
        for name in names:
            width, height = (int(side) for side in generator.integers(40, 90, 2))
            Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(pictures / name)
        for k in range(len(names)):
            key = row["id"] if len(names) == 1 else f"{row['id']}#{k}"
            boxes.append(
                {"id": key, "boxes": [[4, 6, 20, 30], [10, 10, 38, 34]], "scores": [0.9, 0.4], "labels": ["a", "b"]}
            )
        if names:
            row["image"] = names[0] if len(names) == 1 else names
        question = "<image>\n" * len(names) + "what is there?"
        answer = f"{'one two three four'.split()[number % 4]} digits"
        row["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append(row)
    (folder / "records.json").write_text(json.dumps(rows))
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return {
        "data_path": str(folder / "records.json"),
        "image_folder": str(pictures),
        "box_path": str(folder / "boxes.json"),
    }
