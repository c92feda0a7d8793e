"""Checkpoints of real runs through every layout: one process, two processes with ZeRO, LoRA with its resume."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mg_llava.conversion import ConversionOptions, convert, inspect
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from tests import forked
from tests.end_to_end.conftest import Project, train_split
from tests.run import read_log, read_losses

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def stored(path: Path) -> State:
    return load_training_checkpoint(path, dtype=None)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_of_two_processes_equals_one_process(
    project: Project, stage1: Path, stage2: Path, tmp_path: Path, stage: int
) -> None:
    pytest.importorskip("deepspeed")
    split = train_split(project, stage1, f"deepspeed_zero{stage}")
    config = ConversionOptions(config=project.folder / "configs" / "stage2.py")
    for name, work_dir in (("split", split), ("alone", stage2)):
        convert(work_dir, tmp_path / name, "hf", config)
        convert(tmp_path / name, tmp_path / f"{name}.pth", "mmengine")
        assert same(stored(tmp_path / f"{name}.pth"), stored(work_dir / "iter_4.pth"))  # nothing lost on the way
    assert inspect(split)[0].kind == f"DeepSpeed ZeRO-{stage} folder"
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("split", "alone"))
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert agreement(split, stage2) > 0.9  # bfloat16 there, float32 here


def agreement(one: Path, other: Path) -> float:
    """Cosine between what two runs changed in their last two steps."""
    changes = []
    for folder in (one, other):
        before, after = (load_training_checkpoint(folder / f"iter_{step}.pth") for step in (2, 4))
        changes.append(torch.cat([(after[name] - before[name]).flatten() for name in sorted(after)]))
    return float(torch.nn.functional.cosine_similarity(*changes, dim=0))


def test_zero_3_of_two_processes_is_one_process_bit_for_bit(project: Project, tmp_path: Path) -> None:
    """Each record twice, once for each process: their mean is exactly what one process computes.

    In the order of the records, without clipping, whose norm depends on how parameters are split. The adapters of a
    frozen LLM, so that ZeRO-3 gives back weights that gradients flow through and nothing changes.
    """
    pytest.importorskip("deepspeed")
    rows = json.loads(Path(project.data["data_path"]).read_text())[:8]
    folders = {}
    for name, times in (("once", 1), ("twice", 2)):
        file = project.folder / "data" / f"{name}.json"
        file.write_text(json.dumps([row for row in rows for _ in range(times)]))
        own = Project(project.folder, project.paths, {**project.data, "data_path": str(file)})
        lora = {"tuning": "lora", "lora": {"r": 4, "lora_dropout": 0.0}}
        config = own.config(name, "pretrain", batch_size=2, seed=0, **lora)
        options = ["train_dataloader.sampler.shuffle=False", "optim_wrapper.clip_grad.max_norm=1e9"]
        folders[name], output = own.train(
            config, "--deepspeed", "deepspeed_zero3", "--cfg-options", *options, processes=times
        )
        assert (folders[name] / "iter_4.pth").exists(), output[-4000:]
        convert(folders[name], tmp_path / name, "hf", ConversionOptions(config=config))
    once, twice = (stored(folder / "iter_4.pth") for folder in folders.values())
    assert sum(".lora_" in name for name in once) == 28 and same(once, twice)
    before = stored(folders["twice"] / "iter_2.pth")
    assert all((twice[name] != before[name]).any() for name in twice)
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in folders))


def test_stage_1_with_a_frozen_llm_under_zero_3(project: Project, stage1: Path) -> None:
    """The same steps as in one process, although the LLM's weights come and go, and lie in the CPU's memory."""
    pytest.importorskip("deepspeed")
    config = project.config("stage1_zero3", "pretrain", batch_size=2, seed=0)
    work_dir, output = project.train(config, "--deepspeed", "deepspeed_zero3_offload", processes=2)
    assert (work_dir / "iter_4.pth").exists(), output[-4000:]
    assert agreement(work_dir, stage1) > 0.9


def test_xtuners_converter_on_our_config(project: Project, stage2: Path, tmp_path: Path) -> None:
    config, checkpoint = project.folder / "configs" / "stage2.py", stage2 / "iter_4.pth"
    converter = "xtuner.tools.model_converters.pth_to_hf"
    done = forked.run(converter, config, checkpoint, tmp_path / "hf", "--fp32")
    assert (tmp_path / "hf" / "config.json").exists(), done.err[-4000:]
    convert(tmp_path / "hf", tmp_path / "back.pth", "mmengine")
    assert same(stored(tmp_path / "back.pth"), stored(stage2 / "iter_4.pth"))


@pytest.fixture(scope="module")
def lora(project: Project, stage1: Path) -> Path:
    """Work directory of a LoRA training with gradient accumulation: eight batches of two, a step every two."""
    settings = {"tuning": "lora", "lora": {"r": 4, "lora_dropout": 0.1}, "accumulative_counts": 2}
    config = project.config("lora", "instruct", batch_size=2, seed=0, pretrained_pth=str(stage1), **settings)
    work_dir, output = project.train(config, how="here")
    assert (work_dir / "iter_8.pth").exists(), output[-4000:]
    return work_dir


def test_lora_training_resumes_as_if_never_interrupted(project: Project, lora: Path) -> None:
    config = project.folder / "configs" / "lora.py"
    work_dir, output = project.train(config, "--resume", str(lora / "iter_4.pth"), name="lora_resumed")
    assert (work_dir / "iter_8.pth").exists(), output[-4000:]
    losses = read_losses(lora)
    assert read_losses(work_dir) == {step: losses[step] for step in (5, 6, 7, 8)}
    assert same(stored(work_dir / "iter_8.pth"), stored(lora / "iter_8.pth"))


def test_lora_training_moves_adapters_and_projectors(lora: Path, stage1: Path) -> None:
    first, last = stored(lora / "iter_2.pth"), stored(lora / "iter_8.pth")
    adapters = [name for name in last if name.startswith("llm.")]
    assert len(adapters) == 28 and all(".lora_" in name for name in adapters)
    assert all((last[name] != first[name]).any() for name in adapters if "lora_B" in name)
    assert (last["projector.model.0.weight"] != stored(stage1 / "iter_4.pth")["projector.model.0.weight"]).any()
    assert read_log(lora)[-1]["grad_llm"] > 0


def test_lora_checkpoint_merges_to_the_same_answers(project: Project, lora: Path, tmp_path: Path) -> None:
    from mg_llava.inference import Predictor

    def ask(predictor: Predictor) -> list[str]:
        picture = project.folder / "data" / "images" / "0_0.png"
        questions = ("what is there?", "how many digits?", "where?")
        return [
            predictor.predict(picture, question, [[4, 6, 20, 30]], max_new_tokens=8).text for question in questions
        ]

    apart = Predictor.from_pretrained(project.folder / "configs" / "lora.py", lora / "iter_8.pth", device="cpu")
    convert(
        lora,
        tmp_path / "merged.pth",
        "mmengine",
        ConversionOptions(merge=True, config=project.folder / "configs" / "lora.py"),
    )
    tuned = project.config("merged", "instruct", batch_size=2, seed=0, pretrained_pth=None)
    assert ask(Predictor.from_pretrained(tuned, tmp_path / "merged.pth", device="cpu")) == ask(apart)
