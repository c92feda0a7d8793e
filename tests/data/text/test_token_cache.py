"""The token cache: never another result, whatever a kill leaves; many workers; what a filled cache is good for."""

import json
import multiprocessing
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import EncodedConversation, Template
from mg_llava.data.text.token_cache import TokenCache, cache_key, tokenizer_fingerprint
from mg_llava.data.text.token_fill import fill_token_cache
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.data.conftest import train_tokenizer, turns_of
from tests.settings import grouped

COUNT = 40


@pytest.fixture
def data(tmp_path):
    words = random.Random(0)
    records = [
        {"id": i, "conversations": turns_of("How many? " * words.randint(1, 9), "Seven. " * words.randint(1, 9))}
        for i in range(COUNT)
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return tmp_path


def make(data, tokenizer, **changes):
    arguments = dict(image_folder=None, tokenizer=tokenizer, template="vicuna", picture_processor=None)
    return LLaVADataset(data / "data.json", **grouped(**{**arguments, **changes}))


def items(dataset, workers=0):
    return list(DataLoader(dataset, None, num_workers=workers))


def refuse(*_args, **_kwargs):
    raise AssertionError("was done again")


def test_samples_are_the_same_and_tokenized_once(data, tokenizer, monkeypatch):
    expected = items(make(data, tokenizer, max_length=50))
    options = dict(max_length=50, token_cache=data / "cache")
    assert items(make(data, tokenizer, **options), workers=2) == expected
    assert len(make(data, tokenizer, **options).token_cache) == COUNT
    monkeypatch.setattr("mg_llava.data.dataset.encode_conversation", refuse)
    monkeypatch.setattr("mg_llava.data.records.index.index_records", refuse)
    assert items(make(data, tokenizer, **options), workers=2) == expected
    assert len(list((data / "cache").glob("*/*.ids"))) == 2  # nothing new was written


def test_every_setting_has_its_own_ids(data, tokenizers):
    cache = data / "cache"
    for kind in ("words", "bytes"):
        for changes in ({}, {"template": "llama3_chat"}, {"max_length": 12}, {"context_length": 14}):
            expected = items(make(data, tokenizers[kind], **changes))
            assert items(make(data, tokenizers[kind], token_cache=cache, **changes)) == expected
            assert items(make(data, tokenizers[kind], token_cache=cache, **changes)) == expected
    records = json.loads((data / "data.json").read_text())
    (data / "data.json").write_text(json.dumps(records[::-1]))
    assert items(make(data, tokenizers["words"], token_cache=cache)) == items(make(data, tokenizers["words"]))


def test_key(tokenizers):
    template, budget = Template.build("vicuna"), TokenBudget(100, 50)
    base = cache_key(tokenizers["words"], template, budget, "data")
    assert base == cache_key(train_tokenizer("words"), Template.build("vicuna"), TokenBudget(100, 50), "data")
    others = [
        cache_key(tokenizers["bytes"], template, budget, "data"),
        cache_key(tokenizers["words"], Template.build("qwen_chat"), budget, "data"),
        cache_key(tokenizers["words"], template, TokenBudget(100, 51), "data"),
        cache_key(tokenizers["words"], template, budget, "other"),
    ]
    assert len({base, *others}) == 5


def test_fingerprint_sees_special_tokens_and_not_the_place(tmp_path, tokenizers):
    from transformers import AutoTokenizer

    tokenizers["words"].save_pretrained(tmp_path / "a")
    tokenizers["words"].save_pretrained(tmp_path / "b")
    loaded = [AutoTokenizer.from_pretrained(tmp_path / name) for name in "ab"]
    assert tokenizer_fingerprint(loaded[0]) == tokenizer_fingerprint(loaded[1])
    loaded[1].eos_token = "<s>"
    assert tokenizer_fingerprint(loaded[0]) != tokenizer_fingerprint(loaded[1])


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)


def conversation(numbers, seed, truncated):
    draws = random.Random(seed)
    numbers = [IMAGE_TOKEN_INDEX if draws.random() < 0.1 else number for number in numbers]
    labels = [number if number >= 0 and draws.random() < 0.5 else IGNORE_INDEX for number in numbers]
    return EncodedConversation(numbers, labels, truncated)


conversations = st.builds(conversation, ids, st.integers(0, 9), st.booleans())


@given(st.lists(conversations, min_size=1, max_size=5), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_kill_or_a_bad_disk_leaves_is_right_or_absent(tmp_path_factory, values, keep, keep_index, flip):
    folder = tmp_path_factory.mktemp("cache")
    cache = TokenCache(folder, "key", len(values))
    for row, value in enumerate(values):
        cache.put(row, value)
    del cache
    whole = TokenCache(folder, "key", len(values))
    assert [whole.get(row) for row in range(len(values))] == values
    for suffix, count in ((".ids", keep), (".index", keep_index)):
        (path,) = (folder / "key").glob(f"*{suffix}")
        content = bytearray(path.read_bytes())
        if flip:
            content[count % len(content)] ^= 1
        path.write_bytes(content if flip else content[: count % (len(content) + 1)])
    after = TokenCache(folder, "key", len(values))
    for row, value in enumerate(values):
        assert after.get(row) in (value, None)
        after.put(row, value)
    again = TokenCache(folder, "key", len(values))
    # What was lost or damaged is written again.
    assert [again.get(row) for row in range(len(values))] == values


def put_some(folder, number):
    cache = TokenCache(folder, "key", 300)
    for row in range(number % 3, 300, 2):
        cache.put(row, EncodedConversation([row, row + 1], [IGNORE_INDEX, row + 1]))


def test_many_processes_at_once(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=put_some, args=(tmp_path, n)) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    cache = TokenCache(tmp_path, "key", 300)
    assert all(cache.get(row) == EncodedConversation([row, row + 1], [IGNORE_INDEX, row + 1]) for row in range(300))


def test_a_full_disk_costs_the_cache_alone(data, tokenizer, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mg_llava.data.text.token_cache.BlobWriter.add", fail)
    assert items(make(data, tokenizer, token_cache=data / "cache")) == items(make(data, tokenizer))


def test_lengths_are_exact_once_the_cache_was_filled(data, tokenizer):
    options = dict(token_cache=data / "cache", max_dataset_length=30, repeat=1.5)
    estimated = make(data, tokenizer, **options).modality_length
    first = make(data, tokenizer, **options)
    exact = [-len(item["input_ids"]) for item in items(first)]
    # A run that happened to see everything does not change the order of the one that goes on.
    assert make(data, tokenizer, **options).modality_length == estimated != exact
    done = []
    assert fill_token_cache(first, workers=2, progress=done.append) == sum(done) == 30
    assert make(data, tokenizer, **options).modality_length == exact
    # The other records are not known.
    whole = make(data, tokenizer, token_cache=data / "cache")
    assert whole.modality_length == make(data, tokenizer).modality_length
    fill_token_cache(whole)
    assert make(data, tokenizer, **options).modality_length == exact
    filled = make(data, tokenizer, token_cache=data / "cache")
    assert filled.modality_length == [-len(item["input_ids"]) for item in items(filled)]
    with pytest.raises(ValueError, match=r"data\.json has no token cache"):
        fill_token_cache(make(data, tokenizer))


def test_a_survey_is_kept_for_its_data_and_draw(data, tokenizer):
    cache = data / "cache"
    for changes in ({}, {"max_dataset_length": 5}, {"max_dataset_length": 5, "seed": 1}):
        expected = items(make(data, tokenizer, **changes))
        assert items(make(data, tokenizer, token_cache=cache, **changes)) == expected
        assert items(make(data, tokenizer, token_cache=cache, **changes)) == expected
    surveys = list(cache.glob("*.survey.npz"))
    assert len(surveys) == 3
    for path in surveys:
        path.write_bytes(path.read_bytes()[:-100])
    assert items(make(data, tokenizer, token_cache=cache)) == items(make(data, tokenizer))


def test_samples_without_a_label_are_known_as_such(data, tokenizer):
    dataset = make(data, tokenizer, max_length=1, token_cache=data / "cache")
    fill_token_cache(dataset)
    assert make(data, tokenizer, max_length=1, token_cache=data / "cache").modality_length == [-1] * COUNT
    assert np.array(dataset.token_cache.lengths_of(np.arange(COUNT))).tolist() == [1] * COUNT
