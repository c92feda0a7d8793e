"""The token cache is filled for all sources of a config, and the training of that config uses it."""

from pathlib import Path

from mmengine.config import Config

from mg_llava.registry import DATASETS
from tests import toy
from tests.run import Ran, run_tool

LEAF = """
train_dataloader = dict(
    dataset=dict(
        type="mg_llava.MixtureDataset",
        sources=[dict({data}), dict({data}, name="half", draw=dict(repeat=0.5))],
        tokenizer={tokenizer!r},
        template="vicuna",
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=64),
    )
)
"""


def run(*arguments: object) -> Ran:
    return run_tool("fill_token_cache", *arguments)


def test_fill_and_train(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    tokenizer = str(toy.write_tokenizer(tmp_path / "llm"))
    config = tmp_path / "leaf.py"
    config.write_text(LEAF.format(data=", ".join(f"{k}={v!r}" for k, v in data.items()), tokenizer=tokenizer))
    assert run(config).status == 2
    done = run(config, "--folder", tmp_path / "cache", "--workers", 1)
    assert done.status == 0, done.err
    assert done.result["records"] == {"records": 16, "half": 8}
    settings = Config.fromfile(config).train_dataloader.dataset
    settings.update(caches=dict(token_cache=str(tmp_path / "cache")), boxes=dict(count_boxes=False))
    mixture = DATASETS.build(settings)
    lengths = [len(mixture[i]["input_ids"]) for i in range(len(mixture))]
    assert list(map(abs, mixture.modality_length)) == lengths
    done = run(config, "--folder", tmp_path / "cache", "--cfg-options", "train_dataloader.dataset.data_root=/nowhere")
    assert done.status == 0  # absolute paths stay
    options = "train_dataloader.dataset.sources.0.data_path=none.json"
    done = run(config, "--folder", tmp_path / "cache", "--cfg-options", options)
    assert done.status == 1 and "none.json does not exist" in done.err
    done = run(config, "--folder", tmp_path / "cache", "--cfg-options", "none")
    assert done.status == 2 and "KEY=VALUE is needed, found none" in done.err, done.err
    for text, said in (("model = (", "leaf.py cannot be read"), ("model = 1", "has no train_dataloader.dataset")):
        config.write_text(f"{text}\n")
        done = run(config, "--folder", tmp_path / "cache")
        assert done.status == 1 and said in done.err, done.err
