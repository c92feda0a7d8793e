"""Every shipped config at full size, on the meta device, against published numbers of parameters, keys and shapes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mg_llava.planning import Skeleton
from mg_llava.planning.flops import Sample, count_flops
from tests.planning.conftest import LEAVES, PUBLISHED, load_config

PARAMETERS = json.loads((PUBLISHED / "parameters.json").read_text())
TRAINED_IN_STAGE_1 = {"fuse_module", "projector", "bbox_projector"}
OF_MG_LLAVA = [leaf for leaf in LEAVES if not leaf.startswith("lyrics/")]
PAPERS = [leaf for leaf in OF_MG_LLAVA if not leaf.startswith(("ablations/", "mr_mllm/"))]
MR_MLLM = {"adapter", "scene", "objects", "shared_queries"}

# The published towers, without what is not computed: CLIP's last layer (12,596,224) and last norm, the classifier
# and last norm of timm's ConvNeXt and ResNet.
ENCODERS = {
    "clip-vit-large-patch14-336": 303_507_456 - 12_596_224 - 2_048,
    # 26 of 27 layers, patches, positions
    "siglip-so400m-patch14-384": 26 * 15_239_504 + (3 * 14 * 14 + 1) * 1152 + 27 * 27 * 1152,
    "CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": 197_767_336 - 1_537_000 - 3_072,
    "CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup": 846_471_016 - 3_073_000 - 6_144,
    "resnet50": 25_557_032 - 2_049_000,
}


def mlp(inner: int, outer: int) -> int:
    """Parameters of a projector of two layers."""
    return inner * outer + outer + outer * outer + outer


def conv_gate(low: int, high: int) -> int:
    """Parameters of the fusion, from the formulas of the model card."""
    convolutions = high * high + high + high * low + low + 49 * low + low + low * low + low
    return convolutions + 2 * low * (low // 2) + low // 2 + low // 2 + 1


def attention(query: int, read: int) -> int:
    """Parameters of attention with one head: three layers with biases, each after a norm."""
    return sum(2 * width + width * query + query for width in (query, read, read))


def convolutions(low: int, high: int) -> int:
    """Parameters of what Conv-Gate does before its gate."""
    return conv_gate(low, high) - (2 * low * (low // 2) + low // 2 + low // 2 + 1)


LOW, STAGES, D = 1024, (192, 384, 768, 1536), 4096
ALL, LAST = sum(STAGES), STAGES[-1]
MERGED = {
    "channel_concat": {"projector": mlp(LOW + LAST, D), "fuse_module": 0},
    "patch_info_mining": {"fuse_module": attention(LOW, ALL)},  # 6.9 million weights
    "resampler": {
        "fuse_module": convolutions(LOW, LAST),
        # queries, keys and values, attention, norms, what comes after
        "projector": 576 * D + LOW * D + 4 * D * D + 4 * D + 6 * D + D * D,
    },
    "boxes_into_picture": {"box_fuse_module": attention(LOW, ALL), "bbox_projector": 0},  # 6.9 million weights
    "picture_into_boxes": {"box_fuse_module": attention(ALL, LOW)},  # 14.2 million weights
    "objects": {"bbox_projector": mlp(ALL, D)},
    "low_only": {"projector": mlp(LOW, D)},
    "coco80": {"fuse_module": conv_gate(LOW, LAST)},
}
"""Parameters of parts in the rows of Tables 4 and 5."""


@pytest.mark.parametrize("row", MERGED)
def test_parameters_of_the_rows_of_the_paper(row: str, skeleton: Callable[..., Skeleton]) -> None:
    parts = skeleton(f"ablations/mg_llava_vicuna7b_pretrain_{row}").parts()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert {name: counts[name] for name in MERGED[row]} == MERGED[row]
    present = {"fuse_module": row not in ("objects", "low_only"), "bbox_projector": row != "low_only"}
    assert {name: name in counts for name in present} == present


@pytest.mark.parametrize("leaf", PAPERS)
def test_parameters_of_each_part(leaf: str, skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton(leaf)
    model, config = made.model, load_config(leaf).model
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in made.parts().items()}
    width, low = model.llm.get_input_embeddings().embedding_dim, model.visual_encoder.spec.channels
    name = Path(config.llm.path).name
    if config.llm.tuning not in ("lora", "qlora") and name in PARAMETERS:
        assert counts["llm"] == PARAMETERS[name]
    assert counts["projector"] == mlp(low, width)
    if "visual_encoder_aux" in counts and model.visual_encoder_aux is not None:
        stages = model.visual_encoder_aux.spec.stage_channels
        assert counts.get("fuse_module", conv_gate(low, stages[-1])) == conv_gate(low, stages[-1])
        assert counts.get("bbox_projector", mlp(sum(stages), width)) == mlp(sum(stages), width)
        high = config.high_res_encoder
        known = ENCODERS.get(high.get("name") or Path(high.path).name)
        assert known in (None, counts["visual_encoder_aux"])
    assert ENCODERS.get(Path(config.low_res_encoder.path).name, counts["visual_encoder"]) == counts["visual_encoder"]


@pytest.mark.parametrize("leaf", OF_MG_LLAVA)
def test_stage_decides_what_is_trained(leaf: str, skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton(leaf)
    trained = {n for n, part in made.parts().items() if any(p.requires_grad for p in part.parameters())}
    filled = {n for n, part in made.parts().items() if any(True for _ in part.parameters())}
    connectors = TRAINED_IN_STAGE_1 | {"box_fuse_module"}
    expected = connectors & filled | ({"llm"} if "instruct" in leaf or "alignment" in leaf else set())
    if leaf.startswith("mr_mllm/"):  # the LLM's own weights stay
        expected = MR_MLLM | ({"refine", "llm_bias"} if "instruct" in leaf else set())
    assert trained == expected
    whole = {n for n in trained if all(p.requires_grad for p in made.parts()[n].parameters())}
    assert whole == (trained - {"llm"} if "lora" in leaf else trained)


def test_a_grounding_model_has_about_3b_parameters(skeleton: Callable[..., Skeleton]) -> None:
    for stage in ("object_pretrain", "local_alignment", "global_alignment"):
        parts = skeleton(f"tiny_grounding/grounding_qwen2_5_3b_{stage}").parts()
        assert 2.7e9 <= sum(p.numel() for part in parts.values() for p in part.parameters()) <= 3.9e9


@pytest.mark.parametrize(
    ("leaf", "trained"),
    [
        ("lyrics/lyrics_pretrain", {"mq_former", "heads"}),
        ("lyrics/lyrics_vicuna13b_instruct", {"mq_former", "projector", "llm"}),
        ("lyrics/lyrics_qwen2_5_3b_instruct", {"mq_former", "projector", "llm"}),
    ],
)
def test_lyrics_at_full_size(leaf: str, trained: set[str], skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton(leaf)
    parts = made.parts()
    assert {n for n, part in parts.items() if any(p.requires_grad for p in part.parameters())} == trained
    model = made.model
    assert [model.visual_encoder.spec.tokens, model.visual_encoder.spec.channels] == [257, 1408]
    assert model.detector.spec.objects == 100
    # BERT's layers and embeddings, a feed-forward network for the queries, and 6 x 2 cross-attentions
    w, inner = 768, 3072
    norm, square, words = 2 * w, w * w + w, 30523 * w + 512 * w
    network = w * inner + inner + inner * w + w + norm
    crossed = sum(2 * square + 2 * (channels * w + w) + norm for channels in (1408, 256 + 4))
    expected = words + norm + 96 * w + 12 * (4 * square + norm + 2 * network) + 6 * crossed
    assert sum(p.numel() for p in parts["mq_former"].parameters()) == expected
    flops = count_flops(made, Sample(text=10, boxes=0))
    assert flops.length == 10 + ("llm" in trained) * 96 and flops.forward["visual_encoder"] > 2e11
    if "llm" in trained:
        assert flops.forward["mq_former"] > 1e10
        adapters = [name for name, p in model.llm.named_parameters() if p.requires_grad]
        assert adapters and all(re.search(r"\.(q|k|v)_proj\.lora_[AB]\.", name) for name in adapters)
        width = model.llm.get_input_embeddings().embedding_dim
        assert sum(p.numel() for p in parts["projector"].parameters()) == w * width + width


@pytest.mark.parametrize("name", ["vicuna7b", "llama3_8b", "qwen2_5_3b"])
def test_parameters_of_mr_mllm(name: str, skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton(f"mr_mllm/mr_mllm_{name}_instruct")
    counts = {key: sum(p.numel() for p in part.parameters()) for key, part in made.parts().items()}
    llm = made.model.llm
    width, layers = llm.get_input_embeddings().embedding_dim, llm.config.num_hidden_layers
    assert counts["llm"] == PARAMETERS[Path(load_config(f"mr_mllm/mr_mllm_{name}_instruct").model.llm.path).name]
    assert counts["detector"] == 41_524_768  # as published for DETR-R50
    assert counts["adapter"] == (layers - 1) * (10 * width + llm.config.num_attention_heads)
    # behind q, o, gate, up and down
    assert counts["llm_bias"] == layers * (3 * width + 2 * llm.config.intermediate_size)
    open_vocabulary = {"type": "mg_llava.TransformerDetector", "path": "IDEA-Research/grounding-dino-tiny"}
    changed = skeleton(f"mr_mllm/mr_mllm_{name}_instruct", detector={**open_vocabulary, "classes": ["dog", "cat"]})
    assert sum(p.numel() for p in changed.parts()["detector"].parameters()) == 172_249_090


def test_object_images_are_counted(skeleton: Callable[..., Skeleton]) -> None:
    made = skeleton("tiny_grounding/grounding_qwen2_5_3b_local_alignment")
    plain, shown = (count_flops(made, Sample(100, 0, crops)) for crops in (0, 2))
    assert shown.length == plain.length + 2 * 36
    assert shown.forward["visual_encoder"] == pytest.approx(3 * plain.forward["visual_encoder"])
    assert shown.forward["visual_encoder_aux"] == plain.forward["visual_encoder_aux"]


def test_frames_of_a_video_are_counted(skeleton: Callable[..., Skeleton]) -> None:
    """8 x 576 tokens and boxes of each frame; a quarter of the former where frames are pooled."""
    made = skeleton("video/mg_llava_vicuna7b_pretrain_video")
    picture, video = (count_flops(made, Sample(100, 5, frames=frames)) for frames in (0, 8))
    assert (picture.length, video.length) == (576 + 5 + 100, 8 * (576 + 5) + 100)
    for part in ("visual_encoder", "visual_encoder_aux", "projector"):
        assert video.forward[part] == pytest.approx(8 * picture.forward[part])
    pooled = skeleton("video/mg_llava_vicuna7b_pretrain_video", frame_pooler={"type": "mg_llava.FramePooling"})
    assert count_flops(pooled, Sample(100, 5, frames=8)).length == 8 * (144 + 5) + 100


def test_numbers_of_the_published_model(skeleton: Callable[..., Skeleton]) -> None:
    parts = skeleton("mg_llava_vicuna7b_instruct").parts()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts["fuse_module"] == 6_085_121
    assert counts["projector"] == 20_979_712
    assert counts["bbox_projector"] == 28_581_888
    assert sum(counts[name] for name in TRAINED_IN_STAGE_1) == 55_646_721
    assert counts["llm"] == 6_738_415_616


def expand(key: str) -> list[str]:
    """Keys of all layers."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", key)
    if span is None:
        return [key]
    return [key.replace(span[0], str(number)) for number in range(int(span[1]), int(span[2]) + 1)]


def test_checkpoint_has_the_keys_and_shapes_of_the_reference(skeleton: Callable[..., Skeleton]) -> None:
    table = json.loads((PUBLISHED / "checkpoint_vicuna_7b.json").read_text())
    expected = {key: tuple(shape) for pattern, shape in table.items() for key in expand(pattern)}
    saved = skeleton("mg_llava_vicuna7b_instruct").model.state_dict()
    assert len(expected) == 311
    assert {key: tuple(value.shape) for key, value in saved.items()} == expected
    stage1 = skeleton("mg_llava_vicuna7b_pretrain").model.state_dict()
    assert {key: tuple(value.shape) for key, value in stage1.items()} == {
        key: shape for key, shape in expected.items() if not key.startswith("llm.")
    }


@pytest.mark.parametrize(
    ("leaf", "suffix", "shape"),
    [
        ("mg_llava_phi3_instruct", "layers.31.self_attn.qkv_proj.weight", (9216, 3072)),
        ("mg_llava_phi3_instruct", "layers.31.mlp.gate_up_proj.weight", (16384, 3072)),
        ("mg_llava_llama3_8b_instruct", "layers.31.self_attn.k_proj.weight", (1024, 4096)),
        ("mg_llava_llama3_8b_instruct", "embed_tokens.weight", (128256, 4096)),
        ("mg_llava_vicuna13b_instruct", "layers.39.mlp.gate_proj.weight", (13824, 5120)),
        ("mg_llava_yi34b_instruct", "layers.59.self_attn.v_proj.weight", (1024, 7168)),
        ("mg_llava_yi34b_instruct", "embed_tokens.weight", (64000, 7168)),
    ],
)
def test_shapes_of_other_llms(leaf: str, suffix: str, shape: tuple, skeleton: Callable[..., Skeleton]) -> None:
    state = skeleton(leaf).model.state_dict()
    assert tuple(state[f"llm.model.{suffix}"].shape) == shape


def test_skeleton_is_as_large_as_the_model_itself(skeleton: Callable[..., Skeleton]) -> None:
    from mg_llava.registry import MODELS

    leaf = "mg_llava_nano_instruct"
    real = MODELS.build({**load_config(leaf).model, "pretrained_pth": None})
    ours = skeleton(leaf).model
    assert {k: tuple(v.shape) for k, v in real.named_parameters()} == {
        k: tuple(v.shape) for k, v in ours.named_parameters()
    }
    assert {k for k, v in real.named_parameters() if v.requires_grad} == {
        k for k, v in ours.named_parameters() if v.requires_grad
    }
    assert all(p.is_meta for p in ours.parameters())
