"""Records in LLaVA format: what is taken, what is refused, and in which words."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.data.records import PackedRecords, read_record_list
from mg_llava.data.schema import RecordError, Turn, answered_turns, parse_record
from tests.data.conftest import turns_of

TALK = turns_of("Hello?", "Hello.")
PICTURE = turns_of("<image>\nWhat?", "A dog.")


def test_kinds_of_records():
    assert parse_record({"id": 7, "conversations": TALK}).images == ()
    assert parse_record({"id": 7, "image": None, "model": "", "video": "", "conversations": TALK}).images == ()
    record = parse_record({"id": 7, "image": "a/b.jpg", "source": "x", "conversations": PICTURE})
    assert record.id == "7" and record.images == ("a/b.jpg",)
    assert record.turns == (Turn("human", "<image>\nWhat?"), Turn("gpt", "A dog."))
    two = parse_record({"id": 7, "image": ["a", "b"], "conversations": turns_of("<image>?", "1", "<image>?", "2")})
    assert two.images == ("a", "b")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"id": "x", "video": "a.mp4", "conversations": TALK}, "unknown kind of record, with key 'video'"),
        ({"id": "x", "images": ["a"], "conversations": TALK}, "'image' may be a list"),
        ({"id": "x", "Image": "a.jpg", "conversations": TALK}, "unknown key 'Image'; is 'image' meant"),
        ({"id": "x", "conversation": TALK}, "is 'conversations' meant"),
        ({"id": "x", "text": "hello"}, "'conversations' is needed"),
        ({"conversations": TALK}, "needs an id"),
        ({"id": True, "conversations": TALK}, "needs an id"),
        ([], "a record is an object"),
        ({"id": "x", "image": 7, "conversations": TALK}, "image is 7"),
        ({"id": "x", "conversations": "hello"}, "must be a list of turns"),
        ({"id": "x", "conversations": [{"from": "user", "value": "a"}]}, "turn 0 .*'human' or 'gpt'"),
        ({"id": "x", "conversations": [{"from": "human", "value": None}]}, "turn 0"),
        ({"id": "x", "image": "a", "conversations": TALK}, "0 <image> in the questions, 1 pictures"),
        ({"id": "x", "conversations": PICTURE}, "1 <image> in the questions, 0 pictures"),
        ({"id": "x", "image": ["a", "b"], "conversations": PICTURE}, "1 <image> in the questions, 2 pictures"),
        (
            {"id": "x", "image": "a", "conversations": [*TALK, {"from": "human", "value": "<image>"}]},
            "turns that have an answer",
        ),
    ],
)
def test_refused_records_are_named(raw, message):
    with pytest.raises(RecordError, match=message) as error:
        parse_record(raw, "train.json", 12)
    assert "train.json, record 12" in str(error.value)
    if isinstance(raw, dict) and raw.get("id") == "x":
        assert "id 'x'" in str(error.value)


def test_answered_turns():
    turns = [Turn(role, "") for role in ("gpt", "human", "human", "gpt", "gpt", "human")]
    assert answered_turns(turns) == turns[1:5]
    assert answered_turns(turns[:2]) == [] and answered_turns([]) == []


def test_broken_record_files(tmp_path):
    path = tmp_path / "train.json"
    for text, message in [
        ('[{"id": 1, "conver', r"train\.json is truncated or not JSON: .*line 1"),
        ('{"id": 1}', "a list of records is needed"),
        ("[]", "holds no records"),
        ('{"id": 1}\n{"id": 2}', r"must end in \.jsonl"),
    ]:
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            read_record_list(path)
    lines = tmp_path / "train.jsonl"
    lines.write_text('{"id": 1}\n\n{"id": 2}\n{"id": ')
    with pytest.raises(RecordError, match=r"train\.jsonl.*line 4 of the file"):
        read_record_list(lines)
    lines.write_text('{"id": 1}\n\n{"id": "a\u2028b"}\n')
    assert read_record_list(lines) == [{"id": 1}, {"id": "a\u2028b"}]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@given(st.lists(json_values, max_size=6))
@settings(max_examples=60, deadline=None)
def test_packed_records(values):
    packed = PackedRecords(values)
    assert [packed[i] for i in range(len(packed))] == json.loads(json.dumps(values))
