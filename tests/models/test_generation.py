"""The loop over steps gives each row what transformers' ``generate`` gives it alone, in every way it is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mg_llava.models.generation import Decoding, Generated, Prompt, collect, generate, read_prefixes
from tests import toy

PREFIXES = [[5, 9, 17, 30, 41], [7, 11, 80]]
ROWS = [1, 0, 1, 0, 0]
TEXTS = [[60, 61, 62], [33], [90, 12], [14, 15, 16, 99], [201]]
LONGEST = 12


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = toy.write_llm(tmp_path_factory.mktemp("llm"))
    return AutoModelForCausalLM.from_pretrained(Path(folder)).eval()


def prompt_of(llm: Any, rows: list[list[int]]) -> Prompt:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompt(llm.get_input_embeddings()(ids), mask)


def at_once(llm: Any) -> Prompt:
    return prompt_of(llm, [PREFIXES[row] + text for row, text in zip(ROWS, TEXTS, strict=True)])


def after_prefixes(llm: Any) -> Prompt:
    texts = prompt_of(llm, TEXTS)
    return read_prefixes(llm, prompt_of(llm, PREFIXES)).before(torch.tensor(ROWS), texts.embeds, texts.mask)


ways = pytest.mark.parametrize("way", [at_once, after_prefixes])
Way = Callable[[Any], Prompt]


def run(llm: Any, way: Way, given: dict[str, Any], **options: Any) -> list[Generated]:
    decoding = Decoding.of(llm, {"max_new_tokens": LONGEST, "eos_token_id": 299, **given})
    return collect(generate(llm, way(llm), decoding, **options), len(ROWS))


def alone(llm: Any, ends: list[int], **given: Any) -> list[list[int]]:
    """What ``generate`` gives each row of embeddings, alone, without its end."""
    answers = []
    for row, text in zip(ROWS, TEXTS, strict=True):
        prompt = prompt_of(llm, [PREFIXES[row] + text])
        settings = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": LONGEST, "do_sample": False, **given}
        new = llm.generate(inputs_embeds=prompt.embeds, attention_mask=prompt.mask.long(), **settings)[0].tolist()
        answers.append(next((new[:at] for at, token in enumerate(new) if token in ends), new))
    return answers


@ways
def test_rows_end_where_they_end_alone(llm: Any, way: Way) -> None:
    whole = alone(llm, [299])
    found = run(llm, way, {})
    assert [row.ids for row in found] == whole and {row.ended for row in found} == {"limit"}
    ends = [whole[0][3], whole[1][0], whole[3][7]]  # some rows end early, one at once
    expected = alone(llm, ends)
    found = run(llm, way, {"eos_token_id": ends})
    assert [row.ids for row in found] == expected and len({len(row) for row in expected}) > 2
    assert [row.ended for row in found] == ["limit" if len(row) == LONGEST else "end" for row in expected]


@ways
def test_logits_are_penalized_as_by_transformers(llm: Any, way: Way) -> None:
    expected = alone(llm, [299], repetition_penalty=1.5)
    assert [row.ids for row in run(llm, way, {"repetition_penalty": 1.5})] == expected != alone(llm, [299])


@ways
def test_a_row_stops_where_it_is_told(llm: Any, way: Way) -> None:
    whole = alone(llm, [299])
    stop = whole[2][1]
    found = run(llm, way, {}, stop=lambda _, new: new[-1] == stop)
    assert [row.ids for row in found] == [row[: row.index(stop) + 1] if stop in row else row for row in whole]
    assert found[2].ended == "stop"


def test_rows_have_limits_of_their_own(llm: Any) -> None:
    limits = [3, 1, LONGEST, 5, 2]
    found = run(llm, at_once, {}, limits=limits)
    assert [row.ids for row in found] == [row[:n] for row, n in zip(alone(llm, [299]), limits, strict=True)]


def test_close_calls_end_a_row_and_leave_the_others(llm: Any) -> None:
    whole = run(llm, at_once, {})
    steps = list(generate(llm, at_once(llm), Decoding.of(llm, {"max_new_tokens": LONGEST, "eos_token_id": 299})))
    leads = torch.tensor([step.leads for step in steps]).T  # (B, steps)
    margin = float(leads.min(dim=1).values.sort().values[1:3].mean())  # two rows are closer than this somewhere
    found = run(llm, at_once, {}, margin=margin)
    is_close = (leads.min(dim=1).values < margin).tolist()
    assert [row.ended for row in found] == ["close" if close else "limit" for close in is_close]
    assert sum(is_close) == 2
    first = (leads < margin).int().argmax(dim=1)
    for row, expected, close, at in zip(found, whole, is_close, first.tolist(), strict=True):
        assert row.ids == (expected.ids[: at + 1] if close else expected.ids)


def test_drawn_ids_depend_on_the_seed_and_not_on_the_batch(llm: Any) -> None:
    given = {"do_sample": True, "temperature": 3.0, "top_k": 0, "seed": 5}
    together = [row.ids for row in run(llm, at_once, given)]
    for number in range(len(ROWS)):
        one = prompt_of(llm, [PREFIXES[ROWS[number]] + TEXTS[number]])
        decoding = Decoding.of(llm, {"max_new_tokens": LONGEST, "eos_token_id": 299, **given})
        assert collect(generate(llm, one, decoding), 1)[0].ids == together[number]
    assert [row.ids for row in run(llm, at_once, given | {"seed": 6})] != together


def test_drawn_ids_are_among_the_allowed(llm: Any) -> None:
    greedy = [row.ids for row in run(llm, at_once, {})]
    for given in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert [row.ids for row in run(llm, at_once, {"do_sample": True, **given})] == greedy


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_steps_tell_of_their_rows(llm: Any, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMs that change their logits after the output embedding are asked for them."""
    monkeypatch.setattr(llm.config, "final_logit_softcapping", softcap, raising=False)
    whole = alone(llm, [299])
    end = whole[0][2]
    seen: dict[int, list[int]] = {}
    for step in generate(llm, at_once(llm), Decoding.of(llm, {"max_new_tokens": 6, "eos_token_id": end})):
        assert (step.hidden is None) is (softcap is not None)
        assert step.hidden is None or step.hidden.shape == (len(step.rows), llm.config.hidden_size)
        assert all(lead >= 0 for lead in step.leads)
        for row, token in zip(step.rows, step.ids, strict=True):
            seen.setdefault(row, []).append(token)
    assert seen == {n: row[: row.index(end) + 1] if end in row[:6] else row[:6] for n, row in enumerate(whole)}


def test_a_closed_generation_stops(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = llm.model.forward
    monkeypatch.setattr(llm.model, "forward", lambda **kw: passes.append(1) or forward(**kw))
    steps = generate(llm, at_once(llm), Decoding.of(llm, {}))
    next(steps)
    assert torch.is_grad_enabled()
    next(steps)
    steps.close()
    assert len(passes) == 2 and next(steps, None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, must be at least 1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 2.0, "top_k": -1}, "top_p is 2.0.*top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"num_beams": 3}, "num_beams is 3; allowed: 1"),
        ({"tempreature": 1.0}, "unknown arguments of generate: tempreature; known: .*temperature"),
    ],
)
def test_arguments_are_checked(llm: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding.of(llm, given)
