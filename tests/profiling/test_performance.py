"""The benchmarks of box features and training steps, at tiny sizes through the same code."""

import sys
from dataclasses import asdict, replace

import pytest
import torch

from mg_llava.profiling import _measure, _sizes, _step, boxes, checkpoint, packing, startup, train
from mg_llava.profiling._sizes import LEVERS, Case
from tests.run import call_here, run_tool

TINY = Case(vision="nano", batch_size=2, boxes=3, text=12, threads=1)


@pytest.fixture
def tool(monkeypatch):
    """Run ``tools/benchmark.py`` in this process; gives its result and its table."""
    for module in (_measure, boxes, checkpoint, train):
        monkeypatch.setattr(module, "run_child", call_here)

    def run(*arguments):
        done = run_tool("benchmark", *arguments)
        assert done.status == 0, done.err
        return done.result, done.out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["nothing", "all"])
def steps(request):
    """What steps of each stage gave: our way, the published way, and ours with all levers off."""
    case = replace(TINY, llm_trains=request.param)
    ways = {"ours": case, "reference": replace(case, way="reference"), "off": replace(case, off=list(LEVERS))}
    return case, {name: _step.measure_steps(asdict(way), 1, 2) for name, way in ways.items()}


def test_all_ways_take_the_same_steps(steps):
    _, found = steps
    for way in ("reference", "off"):
        assert found[way]["losses"] == pytest.approx(found["ours"]["losses"], rel=1e-5)
        assert found[way]["gradient_norms"] == pytest.approx(found["ours"]["gradient_norms"], rel=1e-4)
    losses = found["ours"]["losses"]
    assert len(losses) == 3 and len(set(losses)) == 3 and min(found["ours"]["gradient_norms"]) > 1e-3


def test_parts_of_a_step_lie_within_it(steps):
    _, found = steps
    for item in found.values():
        assert set(item["parts"]) == set(_step.PARTS)
        assert sum(item["parts"].values()) <= item["seconds"]  # no second is counted twice
        assert all(item["parts"][part] > 0 for part in ("encoders", "fusion", "boxes", "llm", "optimizer"))


def test_the_published_way_differentiates_its_encoder_and_ours_does_not():
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    ours, reference = (_sizes.build_model(replace(TINY, way=way)).visual_encoder for way in ("ours", "reference"))
    plain, differentiated = ours(pixels).tokens, reference(pixels).tokens
    assert not plain.requires_grad and differentiated.requires_grad
    assert torch.allclose(plain, differentiated.detach(), atol=1e-6)


def test_work_counts_tokens_that_are_no_padding_and_grows_with_boxes():
    work = _sizes.count_work(asdict(TINY), 1, 1)
    model = _sizes.build_model(TINY)
    batch = _sizes.make_batches(TINY, model, 2)[1]
    with torch.no_grad():
        assert work["tokens"] == int(model.merge(batch).attention_mask.sum())
    assert _sizes.count_work(asdict(replace(TINY, boxes=30)), 1, 1)["flops"] > work["flops"] > 0


def test_boxes(tool):
    result, table = tool("boxes", "--boxes", 8, "--canvas", 64, "--channels", 4, 6, 8, 10, "--rounds", 1)
    assert result["benchmark"] == "boxes" and result["error"] <= 1e-5
    slow, fast = result["dense"], result["separable"]
    assert result["speedup"] == pytest.approx(slow["seconds"] / fast["seconds"], rel=0.1, abs=0.1)
    assert "separable" in table and "dense" in table


def test_train(tool):
    sizes = ["--vision", "nano", "--batch-size", 2, "--text", 12, "--warmup", 0, "--threads", 1]
    result, table = tool("train", *sizes, "--boxes", 3, 2, "--peak-tflops", 1)
    assert result["benchmark"] == "train" and result["boxes"] == 3 and result["by_boxes"]["2"]["boxes"] == 2
    assert result["error"] <= 1e-5 and result["gradient_error"] <= 1e-4
    assert {"speedup", "memory_ratio", "peak_mb", "tokens_per_s"} <= set(result) and 0 < result["mfu"] < 1
    assert set(result["ways"]) == {"ours", "reference"} and "encoders" in table


def test_levers_are_switched_one_by_one():
    ways = train._switched(TINY)
    assert {f"without {lever}" for lever in LEVERS} <= set(ways)
    assert {"with packing", "without loss_chunk", "with compile_vision", "checkpointing selective"} <= set(ways)
    for way in ways.values():
        changes = len(way.off) + (way.model != TINY.model) + (way.checkpointing != TINY.checkpointing)
        assert changes == 1 and way.way == "ours"
    assert "with loss_kernel" not in ways  # on a CPU


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "autocast", "tolerances"),
    [("nothing", False, (1e-5, 1e-5)), ("all", False, (1e-5, 1e-5)), ("all", True, (2e-3, 1e-2))],
)
def test_all_levers_together_change_nothing_in_twenty_steps(trained, autocast, tolerances):
    """Losses and gradient norms; with autocast within the rounding of bfloat16 (8 bits) that training carries on."""
    case = replace(TINY, llm_trains=trained, autocast=autocast, batch_size=4, text=60)
    on = replace(case, checkpointing="selective", model={"packing": 512, "loss_chunk": 16})
    off = replace(case, off=list(LEVERS), model={"packing": None, "loss_chunk": None})
    found, expected = (_step.measure_steps(asdict(way), 0, 20) for way in (on, off))
    assert len(set(found["losses"])) == 20
    for key, tolerance in zip(("losses", "gradient_norms"), tolerances, strict=True):
        assert found[key] == pytest.approx(expected[key], rel=tolerance)


def test_the_batches_of_the_levers_are_packed():
    case = replace(TINY, batch_size=4, text=60)
    model = _sizes.build_model(replace(case, model={"packing": 512}))
    (batch,) = _sizes.make_batches(case, model, 1)
    rows = []
    model.llm.get_decoder().register_forward_pre_hook(
        lambda _, __, read: rows.append(len(read["inputs_embeds"])), with_kwargs=True
    )
    model(batch)
    assert rows[0] < 4


def test_packing(tool):
    sizes = ["--batch-size", 4, "--text", 12, "--boxes", 2, "--steps", 1, "--threads", 1]
    result, table = tool("packing", *sizes, "--samples", 2000)
    assert result["benchmark"] == "packing" and result["error"] <= 1e-5 and result["gradient_error"] <= 1e-4
    assert 0 < result["waste"] < 0.05 < result["waste_padded"] < 1 and 1 <= result["rows"] < 4
    assert 0 < result["shuffled"]["waste"] < 0.05 < result["shuffled"]["waste_padded"]
    assert {"speedup", "memory_ratio"} <= set(result) and "packed, mask" in table


def test_the_mixture_has_the_papers_lengths():
    mixture = packing.Mixture(4000, seed=0)
    text_alone = mixture.modality_length < 0
    assert 0.01 < text_alone.mean() < 0.06 and mixture.lengths[text_alone].max() <= 1472
    seen = mixture.lengths[~text_alone]
    assert seen.min() > 576 and seen.max() <= 576 + 100 + 1472
    assert (mixture.modality_length != mixture.lengths).mean() > 0.9  # a sampler does not know them exactly


def test_scaling(tool):
    sizes = ["--batch-size", 1, "--text", 12, "--threads", 1, "--steps", 1, "--baseline", "none"]
    result, table = tool("scaling", *sizes, "--axes", "boxes", "pictures", "--boxes-values", 0, 4)
    assert result["axes"]["boxes"]["values"] == [0, 4] and result["axes"]["boxes"]["ours"]["power"] is None
    assert len(result["axes"]["pictures"]["ours"]["seconds"]) == 3 and "cost grows as" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--llm", "no-such"], "unknown LLM 'no-such'; known: nano"),
        (["--model", "packing"], "is not KEY=VALUE"),
        (["--model", "paking=1"], "the model has no paking; it has"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    done = run_tool("benchmark", "train", *arguments)
    assert done.status == 1 and message in done.err


IMPORTS = """\
import time: self [us] | cumulative | imported package
import time:    100000 |     100000 | site
import time: self [us] | cumulative | imported package
import time:    200000 |     200000 |   torch.nn
import time:   3000000 |    3200000 | torch
something that was printed
import time:     40000 |      40000 |     heavy.core
import time:    500000 |     540000 |   heavy
import time:      7000 |       7000 |   mg_llava.registry
import time:     10000 |     557000 | mg_llava.models
import time:    900000 |     900000 | timm
"""


def test_imports_are_split_into_ours_and_others():
    first, second = startup.parse_imports(IMPORTS)
    assert list(first) == ["site"] and second["heavy.core"].inside and not second["timm"].inside
    found = startup.split_imports(second, {"torch": second["torch"], "torch.nn": second["torch.nn"]})
    assert found["own_s"] == pytest.approx(0.017) and found["modules"] == 2
    assert found["brought_s"] == pytest.approx({"heavy": 0.54}) and found["on_demand_s"] == pytest.approx(
        {"timm": 0.9}
    )
    assert found["added_s"] == pytest.approx(0.557)


def test_commands_are_watched_up_to_their_first_iteration():
    watched = startup._watch([sys.executable, "-c", "import wave; print('Iter(train) [1/2]')"])
    assert "wave" in watched.processes[0] and watched.first is not None and watched.cpu_seconds > 0
    with pytest.raises(RuntimeError, match=r"(?s)failed with status 1: .*no_such_module"):
        startup._watch([sys.executable, "-c", "import no_such_module"])


@pytest.mark.slow
def test_this_package_imports_nothing_heavy_that_xtuner_does_not():
    rooms = "from mg_llava.registry import DATASETS, HOOKS, MODELS\nfor room in (DATASETS, HOOKS, MODELS):\n"
    code = f"{startup._PLAIN}\n{rooms}    room.import_from_location()"
    found = startup.split_imports(startup._watch([sys.executable, "-c", code]).processes[-1], {})
    assert set(found["brought_s"]) <= {"tabulate"} and found["modules"] > 20


def test_saving_waits_for_the_copy_alone(tool):
    result, table = tool("checkpoint", "--size", "20", "--step", "1", "--interval", "10")
    assert result["benchmark"] == "checkpoint" and "background" in table
    ours = result["background"]
    assert 0 < ours["waits_s"] < ours["written_s"]
    assert ours["share"] == pytest.approx(ours["waits_s"] / (ours["waits_s"] + 10), rel=1e-2)
