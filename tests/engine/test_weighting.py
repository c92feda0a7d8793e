"""A step of several micro-batches has the gradient of one large batch, however long their answers are."""

from itertools import cycle
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from mg_llava.data.collate import collate
from mg_llava.engine import weighting
from mg_llava.engine.facts import ResumeError
from mg_llava.engine.weighting import WeightedBatches
from tests import toy
from tests.models.test_waiting import NoReads

SAMPLES = {
    "pictures": [(40, 1), (8, 1), (6, 2), (70, 1)],
    "text among them": [(40, 1), (8, 0), (6, 0), (70, 1)],
    "text alone": [(50, 0), (8, 0), (6, 0), (9, 0)],
}


def instances_of(model: Any, samples: list[tuple[int, int]], counted: bool = True) -> list[dict]:
    """Instances whose rows are as long as ``samples`` say, with half of the text labeled."""
    count = model.token_count
    made = toy.make_batch(samples, seed=6)
    return [one | {"tokens": [count(1, len(own)) for own in one["boxes"]]} for one in made] if counted else made


def step(
    model: Any, batches: list[dict], counts: int, weighting: Any = "tokens", **settings: Any
) -> dict[str, Tensor]:
    """Gradients that the optimizer gets of one step over some batches."""
    found: list[dict[str, Tensor]] = []
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(list(named.values()), lr=1.0)
    optimizer.register_step_pre_hook(
        lambda *_: found.append({name: p.grad.detach().clone() for name, p in named.items() if p.grad is not None})
    )
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts, **settings)
    wrapper.initialize_count_status(model, 0, len(batches))
    source = WeightedBatches(cycle(batches), model, weighting, counts, 0, len(batches), divides_alike=False)
    for _ in batches:
        model.train_step(next(source), wrapper)
    assert len(found) == 1
    return found[0]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-6 of the norm of the whole gradient."""
    norm = torch.stack([value.norm() for value in expected.values()]).norm()
    apart = torch.stack([(found[name] - value).norm() for name, value in expected.items()]).norm()
    assert apart <= 1e-6 * norm


def model_of(paths: dict[str, str], tuning: str = "full", **changes: Any) -> Any:
    llm = toy.model_config(paths, tuning)["llm"] | (
        {"lora": {"r": 4, "lora_dropout": 0.0}} if tuning == "lora" else {}
    )
    return toy.build_model(paths, llm=llm, **changes).double()  # so that rounding hides nothing


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(("tuning", "changes"), [("full", {}), ("lora", {}), ("full", {"packing": 64})])
def test_micro_batches_make_the_large_batch(
    toy_paths: dict[str, str], samples: str, tuning: str, changes: dict[str, Any]
) -> None:
    model = model_of(toy_paths, tuning, **changes)
    instances = instances_of(model, SAMPLES[samples])
    whole = step(model, [collate(instances)], 1)
    for size in (1, 2):
        parts = [collate(instances[at : at + size]) for at in range(0, 4, size)]
        again = model_of(toy_paths, tuning, **changes)
        assert_same(step(again, parts, len(parts)), whole)
    assert any(value.abs().max() > 1e-3 for value in whole.values())


@pytest.mark.parametrize("counted", [True, False])
def test_rows_and_batches_without_labels_count_nothing(toy_paths: dict[str, str], counted: bool) -> None:
    model = model_of(toy_paths)
    instances = instances_of(model, SAMPLES["pictures"], counted)
    for one in instances[1:3]:
        one["labels"] = torch.full_like(one["labels"], -100)
    whole = step(model, [collate(instances)], 1)
    assert_same(step(model_of(toy_paths), [collate([one]) for one in instances], 4), whole)
    nothing = step(model_of(toy_paths), [collate([one]) for one in instances[1:3]], 2)
    assert not any(value.any() for value in nothing.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_last_step_may_have_fewer(toy_paths: dict[str, str], count: int) -> None:
    """Of four micro-batches for each step the last one has only these."""
    model = model_of(toy_paths)
    instances = instances_of(model, SAMPLES["pictures"])[-count:]
    whole = step(model, [collate(instances)], 1)
    assert_same(step(model_of(toy_paths), [collate([one]) for one in instances], 4), whole)


def test_gradients_are_clipped_as_those_of_the_large_batch(toy_paths: dict[str, str]) -> None:
    clip = {"clip_grad": {"max_norm": 0.5}}
    model = model_of(toy_paths)
    instances = instances_of(model, SAMPLES["pictures"])
    whole = step(model, [collate(instances)], 1, **clip)
    assert_same(step(model_of(toy_paths), [collate([one]) for one in instances], 4, **clip), whole)
    assert torch.stack([value.norm() for value in whole.values()]).norm() == pytest.approx(0.5, rel=1e-4)


def test_reference_weighs_micro_batches_alike(toy_paths: dict[str, str]) -> None:
    instances = instances_of(model_of(toy_paths), SAMPLES["pictures"])
    batches = [collate([one]) for one in instances]
    alone = [step(model_of(toy_paths), [batch], 1) for batch in batches]
    mean = {name: torch.stack([one[name] for one in alone]).mean(0) for name in alone[0]}
    assert_same(step(model_of(toy_paths), batches, 4, "micro_batches"), mean)
    by_tokens = step(model_of(toy_paths), batches, 4)
    apart = max(float((by_tokens[name] - mean[name]).norm() / mean[name].norm()) for name in mean)
    assert apart > 0.1


def test_value_of_a_loss_does_not_show_its_weight(toy_paths: dict[str, str]) -> None:
    model = model_of(toy_paths)
    batches = [collate([one]) for one in instances_of(model, SAMPLES["pictures"])]
    plain = [model(batch["data"])["loss"].item() for batch in batches]
    source = WeightedBatches(cycle(batches), model, "tokens", 4, 0, 4, divides_alike=False)
    weighed = [next(source) for _ in batches]
    assert [model(batch["data"])["loss"].item() for batch in weighed] == plain
    assert sum(batch["data"]["loss_weights"][0] for batch in weighed) == pytest.approx(4)


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_waits_for_the_device(
    toy_paths: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the counts of a step nor its weights are read; two equal processes have the weights of one."""
    monkeypatch.setattr(weighting, "get_world_size", lambda: processes)
    monkeypatch.setattr(weighting, "all_reduce", lambda totals: totals.mul_(processes))
    model = model_of(toy_paths)
    batches = [collate([one]) for one in instances_of(model, [(8, 1), (24, 1)])]
    source = WeightedBatches(cycle(batches), model, "tokens", 2, 0, 2, divides_alike=False)
    with NoReads():
        weighed = [next(source) for _ in batches]
        for batch in weighed:
            model(batch["data"])["loss"].backward()
    assert [float(batch["data"]["loss_weights"][0]) for batch in weighed] == pytest.approx([0.5, 1.5])


def test_batches_of_a_plain_step_pass_as_they_are(toy_paths: dict[str, str]) -> None:
    """One micro-batch in one process; equal micro-batches; and those that a resumed run skips."""
    model = model_of(toy_paths)
    batches = [collate([one]) for one in instances_of(model, [(8, 1)] * 4)]
    for counts in (1, 2):
        source = WeightedBatches(cycle(batches), model, "tokens", counts, 2, 6, divides_alike=False)
        assert all(next(source) is batches[number % 4] for number in range(6))


def test_deepspeed_divides_an_incomplete_step_as_any_other(toy_paths: dict[str, str]) -> None:
    model = model_of(toy_paths)
    batches = [collate([one]) for one in instances_of(model, [(8, 1), (8, 1), (24, 1)])]
    for way, expected in (("tokens", [0.8, 1.6 * 1.5]), ("micro_batches", [1.5, 1.5])):
        source = WeightedBatches(cycle(batches[1:]), model, way, 3, 0, 2, divides_alike=True)  # type: ignore[arg-type]
        found = [next(source)["data"]["loss_weights"][0] for _ in range(2)]
        counts = [model.loss_counts(batch["data"])[0] for batch in batches[1:]]
        wanted = [3 * n / sum(counts) for n in counts] if way == "tokens" else expected
        assert found == pytest.approx(wanted)


def test_unknown_weighting_is_refused(runs: Any) -> None:
    with pytest.raises(ValueError, match="loss_weighting is 'samples'; known: tokens, micro_batches"):
        runs.train(**{"train_cfg.loss_weighting": "samples"})


# -- resume ---------------------------------------------------------------------------------------------------------


def test_weighting_of_a_resumed_run_is_that_of_the_run(runs: Any) -> None:
    two = {"optim_wrapper.accumulative_counts": 2}
    runs.train(**two)
    checkpoint = runs.work_dir / "iter_4.pth"
    with pytest.raises(ResumeError, match=r"loss weighting .*: tokens in the checkpoint, micro_batches here"):
        runs.train(resume=checkpoint, **two, **{"train_cfg.loss_weighting": "micro_batches"})
    content = torch.load(checkpoint, weights_only=False)
    facts = content["message_hub"]["runtime_info"]["run_facts"]
    del facts["loss weighting (train_cfg.loss_weighting)"]
    torch.save(content, old := checkpoint.with_name("old.pth"))  # of a run before there was a choice
    with pytest.raises(ResumeError, match=r"loss weighting .*: micro_batches in the checkpoint, tokens here"):
        runs.train(resume=old, **two)
    _, rest = runs.train(resume=old, **two, **{"train_cfg.loss_weighting": "micro_batches"})
    assert set(rest) == {5}


def test_checkpoint_between_two_updates_is_refused(runs: Any) -> None:
    two = {"optim_wrapper.accumulative_counts": 2}
    runs.train(**two, **{"train_cfg.max_iters": 6})
    content = torch.load(runs.work_dir / "iter_4.pth", weights_only=False)
    content["meta"]["iter"] = 3
    torch.save(content, odd := runs.work_dir / "iter_3.pth")
    with pytest.raises(ResumeError, match=r"iter_3\.pth is of step 3, between two updates of 2 steps"):
        runs.train(resume=odd, **two, **{"train_cfg.max_iters": 6})
