"""Greedy generation after prefixes gives each row what the LLM's own ``generate`` gives it alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mg_llava.models.generation import can_share, generate_after, read_prefixes
from tests import toy

PREFIXES = [[5, 9, 17, 30, 41], [7, 11, 80]]
ROWS = [1, 0, 1, 0, 0]
TEXTS = [[60, 61, 62], [33], [90, 12], [14, 15, 16, 99], [201]]
LONGEST = 12


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = toy.write_llm(tmp_path_factory.mktemp("llm"))
    return AutoModelForCausalLM.from_pretrained(Path(folder)).eval()


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])


def after_prefixes(llm: torch.nn.Module, ends: list[int], **settings: object) -> tuple[list[list[int]], torch.Tensor]:
    ids, mask = pad_left(PREFIXES)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    prefixes = read_prefixes(llm, llm.get_input_embeddings()(ids), mask, positions)
    found, leads = generate_after(llm, prefixes, torch.tensor(ROWS), *pad_left(TEXTS), ends, LONGEST, **settings)
    return [row.tolist() for row in found], leads


def alone(llm: torch.nn.Module, ends: list[int]) -> list[list[int]]:
    answers = []
    for row, text in zip(ROWS, TEXTS, strict=True):
        prompt = torch.tensor([PREFIXES[row] + text])
        settings = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": LONGEST, "do_sample": False}
        new = llm.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0, prompt.shape[1] :].tolist()
        answers.append(next((new[:at] for at, token in enumerate(new) if token in ends), new))
    return answers


def test_rows_end_where_they_end_alone(llm: torch.nn.Module) -> None:
    whole = alone(llm, [299])
    assert after_prefixes(llm, [299])[0] == whole and len(whole[0]) == LONGEST
    ends = [whole[0][3], whole[1][0], whole[3][7]]  # some rows end early, one at once
    expected = alone(llm, ends)
    found, leads = after_prefixes(llm, ends)
    assert found == expected and len({len(row) for row in expected}) > 2
    assert leads.shape == (5,) and bool((leads > 0).all())


def test_a_row_stops_where_it_is_told(llm: torch.nn.Module) -> None:
    whole = alone(llm, [299])
    stop = whole[2][1]
    found, _ = after_prefixes(llm, [299], stop=lambda new: new[:, -1] == stop)
    assert found == [row[: row.index(stop) + 1] if stop in row else row for row in whole]


def test_what_generate_would_do_otherwise_is_not_shared(llm: torch.nn.Module) -> None:
    assert can_share(llm, {"do_sample": False, "max_new_tokens": 5})
    for settings in ({"do_sample": True}, {"num_beams": 3}, {"repetition_penalty": 1.1}):
        assert not can_share(llm, settings)
