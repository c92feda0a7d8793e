"""Options that cannot work together, missing files, and where sizes come from."""

import copy
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mg_llava.models.architectures import ArchitectureError, find_architecture, sizes_from
from mg_llava.planning import build_skeleton, make_plan
from mg_llava.planning.checks import find_conflicts, find_missing
from mg_llava.planning.gpus import GPUS, find_gpu
from mg_llava.planning.options import unknown_options
from mg_llava.planning.plan import IMPOSSIBLE, Plan
from tests import toy
from tests.planning.conftest import LEAVES, load_config


@pytest.fixture
def toy_config(toy_paths: dict[str, str], tmp_path: Path) -> Config:
    """A config of the toy in which nothing is missing."""
    tokenizer = dict(type="transformers.AutoTokenizer.from_pretrained", pretrained_model_name_or_path=toy_paths["llm"])
    dataset = dict(
        type="mg_llava.LLaVADataset",
        tokenizer=tokenizer,
        template="vicuna",
        budget=dict(context_length=128, max_length=124),
        tokens=dict(per_canvas=4),
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=toy.CANVAS),
        **toy.write_data(tmp_path / "data", records=10),
    )
    return Config(
        dict(
            model=toy.model_config(toy_paths, "full", pretrained_pth=None),
            tokenizer=tokenizer,
            prompt_template="vicuna",
            picture_processor=dict(dataset["picture_processor"]),
            train_dataloader=dict(
                batch_size=2, dataset=dataset, sampler=dict(type="LengthGroupedSampler", per_device_batch_size=2)
            ),
            optim_wrapper=dict(dtype="bfloat16", accumulative_counts=1),
            train_cfg=dict(max_epochs=3),
        )
    )


def plan(config: Config, gpu: str = "A100-80G", **options: object) -> Plan:
    return make_plan(config, find_gpu(gpu), **{"gpus": 2, **options})  # type: ignore[arg-type]


def test_a_complete_config_can_run(toy_config: Config) -> None:
    found = plan(toy_config)
    assert found.status == 0 and not found.conflicts and not found.missing
    assert found.fits[0] == "none"
    assert found.steps is not None
    # 10 records, 2 GPUs of 2: 2.5 batches
    assert (found.steps.samples, found.steps.source, found.steps.iterations) == (10, "counted", 3)
    assert found.steps.epochs == 3
    assert json.loads(json.dumps(found.to_dict()))["status"] == 0


def test_a_feature_cache_that_cannot_be(toy_config: Config) -> None:
    """An encoder is trained: said before a cache is filled."""
    toy_config.model.trains = ["low_res_encoder", "fusion", "projector", "box_projector", "llm"]
    without = plan(toy_config)
    assert without.status == 0 and without.features is None
    assert any("no feature cache: a feature cache stands for frozen encoders" in note for note in without.notes)
    toy_config.train_dataloader.dataset.caches = dict(feature_cache="there")
    (conflict,) = plan(toy_config).conflicts
    assert conflict.endswith("low_res_encoder is trained; set feature_cache=None")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"optim_wrapper.accumulative_counts": 2}, {}, r"groups 2 samples, but a step of one device has 4"),
        ({}, {"gpu": "V100-32G"}, r"V100-32G does not compute in it; use precision='float16'"),
        ({"optim_wrapper.dtype": "float32"}, {"deepspeed": "deepspeed_zero2"}, "trains in 16 bits"),
        ({"prompt_template": "vicunna"}, {}, r"'vicunna' is unknown"),
        ({"model.llm.path": "other/llm"}, {}, r"nothing says how large other/llm is"),
        (
            {"train_dataloader.dataset.tokens.per_canvas": 9},
            {},
            r"counts 9 tokens for a picture, but the model gives 4",
        ),
        ({"train_dataloader.dataset.budget.context_length": 4}, {}, r"leaves no room for text"),
        ({"picture_processor.image_size": 96}, {}, r"made for 96 px, but the model reads 64"),
        ({"model.high_res_encoder.image_size": 96}, {}, r"cannot be built: .*2 x 2 grid .* 3 x 3"),
        ({"model.llm.lora": dict(r=4)}, {}, r"lora settings are given but tuning='full'"),
        ({"model.high_res_encoder": None}, {}, r"high_res_encoder is None, but fusion and box_projector"),
        ({"model.llm.tuning": "qlora"}, {"deepspeed": "deepspeed_zero3"}, r"cannot split 4-bit weights"),
        ({"train_dataloader.batch_sise": 4}, {}, r"train_dataloader.batch_sise is no option of DataLoader; did you"),
        (
            {"train_dataloader.dataset.max_lenght": 4},
            {},
            r"has no setting max_lenght; write budget=dict\(max_length=...\)",
        ),
        ({"model.fusion": dict(type="mg_llava.ConvGateFusion", depth=2)}, {}, "has no argument depth"),
        ({"model.losses": []}, {}, "losses is empty, so that there is nothing to train on; remove it"),
        ({"train_dataloader.batch_size": 10**7}, {}, r"takes \d+ GiB of A100-80G's 80"),
    ],
)
def test_what_cannot_work_is_said(change: dict, options: dict, message: str, toy_config: Config) -> None:
    for key, value in change.items():
        *parents, last = key.split(".")
        node = toy_config
        for name in parents:
            node = node[name]
        node[last] = value
    found = plan(toy_config, **options)
    assert found.status == IMPOSSIBLE
    import re

    assert any(re.search(message, conflict) for conflict in found.conflicts), found.conflicts


def test_positions_that_only_this_training_teaches_are_said(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_config.train_dataloader.dataset.budget.context_length = 4096
    found = plan(toy_config)
    assert found.status == 0
    assert any("4096, but the LLM was made for 512 positions" in note for note in found.notes), found.notes
    monkeypatch.setattr("mg_llava.planning.checks.has_further_positions", lambda config: False)
    (conflict,) = plan(toy_config).conflicts
    assert "4096, but the LLM has 512 positions; take fewer frames or boxes" in conflict


def test_what_speeds_training_up_need_not_be_here(toy_config: Config) -> None:
    toy_config.model.losses = [dict(type="mg_llava.LanguageLoss", kernel="liger")]
    assert plan(toy_config).status == 0


def test_all_conflicts_are_named_at_once(toy_config: Config) -> None:
    toy_config.optim_wrapper.accumulative_counts = 2
    toy_config.prompt_template = "none"
    toy_config.train_dataloader.dataset.tokens.per_canvas = 9
    assert len(plan(toy_config, "T4-16G").conflicts) == 4


def test_misspelt_options_of_a_mixture() -> None:
    config = copy.deepcopy(load_config("mg_llava_vicuna7b_instruct"))
    assert not list(unknown_options(config))
    dataset = config.train_dataloader.dataset
    dataset.buget, dataset.budget.max_lenght, dataset.sources[1].repeat = 9, 9, 2
    assert list(unknown_options(config)) == [
        "train_dataloader.dataset has no setting buget; did you mean budget?",
        "train_dataloader.dataset.budget has no setting max_lenght; did you mean max_length?",
        "train_dataloader.dataset.sources.1 has no setting repeat; write draw=dict(repeat=...)",
    ]


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if "nano" not in leaf])
def test_shipped_configs_have_no_conflicts(leaf: str) -> None:
    mode = "deepspeed_zero3" if "yi34b" in leaf else "deepspeed_zero2"
    assert list(find_conflicts(load_config(leaf), None, find_gpu("A100-80G"), mode)) == []


def test_missing_files_are_listed_once(toy_config: Config) -> None:
    data = toy_config.train_dataloader.dataset
    data.box_path, data.image_folder = "no/boxes.json", "no/images"
    toy_config.model.pretrained_pth = "no/stage1"
    found = plan(toy_config)
    assert found.status == 3
    assert {(item["what"], item["path"]) for item in found.missing} == {
        ("box_path", "no/boxes.json"),
        ("image_folder", "no/images"),
        ("pretrained_pth", "no/stage1"),
    }


def test_the_papers_files_are_missed_here() -> None:
    missing = find_missing(load_config("mg_llava_vicuna7b_instruct"))
    assert {"llm", "low_res_encoder", "high_res_encoder", "pretrained_pth", "data_path"} <= {
        m["what"] for m in missing
    }
    assert len({m["path"] for m in missing}) == len(missing)


def test_hours_need_a_number_of_samples(toy_config: Config) -> None:
    toy_config.train_dataloader.dataset.data_path = "no.json"
    found = plan(toy_config)
    assert found.steps is not None and found.steps.hours_per_epoch is None
    assert any("give the number of samples" in note for note in found.notes)
    first, second = (plan(toy_config, samples=n).steps for n in (10**6, 2 * 10**6))
    assert first is not None and second is not None and first.hours_per_epoch and second.hours_per_epoch
    assert second.hours_per_epoch == pytest.approx(2 * first.hours_per_epoch)


def test_wrong_numbers_are_refused(toy_config: Config) -> None:
    for options in ({"gpus": 0}, {"mfu": 0.0}, {"mfu": 1.5}, {"deepspeed": "zero9"}):
        with pytest.raises(ValueError, match="must be at least 1"):
            plan(toy_config, **options)
    with pytest.raises(ValueError, match=r"'H1000' is unknown; nearest: H100-80G; known: A100-80G"):
        find_gpu("H1000")
    assert find_gpu("h100-80g") is GPUS["H100-80G"]


@pytest.mark.parametrize("kwargs", [True, False])
@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("name", ["convnext_large", "convnext_tiny", "convnext_base"])
def test_a_plan_counts_what_is_loaded(
    toy_paths: dict[str, str], tmp_path: Path, name: str, safetensors: bool, kwargs: bool
) -> None:
    """A ConvNeXt of another size than its name, whose settings say so or are silent."""
    folder = toy.write_convnext(tmp_path / "convnext", name, safetensors, kwargs)
    settings = toy.model_config({**toy_paths, "convnext": str(folder)})
    planned = build_skeleton(settings).parts()["visual_encoder_aux"]
    loaded = toy.build_model({**toy_paths, "convnext": str(folder)}).visual_encoder_aux
    assert [(k, v.shape) for k, v in planned.state_dict().items()] == [
        (k, v.shape) for k, v in loaded.state_dict().items()
    ]


def test_sizes_come_from_the_folder_first(toy_paths: dict[str, str], tmp_path: Path) -> None:
    assert find_architecture(toy_paths["llm"], "transformers").config["hidden_size"] == toy.LLM_WIDTH
    published = find_architecture("lmsys/vicuna-7b-v1.5", "transformers")
    assert published.config["hidden_size"] == 4096 and published.source.endswith("vicuna-7b-v1.5")
    assert "convnext_large" in str(find_architecture("convnext_large_d_320", "open_clip").config)
    internlm = find_architecture("internlm/internlm2_5-7b-chat", "transformers")
    assert internlm.config["model_type"] == "llama" and "counted as llama" in internlm.note
    with pytest.raises(ArchitectureError, match=r"how large no/model is \(looked for no/model/config.json"):
        find_architecture("no/model", "transformers")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArchitectureError, match="is no JSON"):
        with sizes_from(tmp_path):
            find_architecture("x/broken", "transformers")
