"""Records in LLaVA format: what is taken, what is refused, and in which words."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mg_llava.data.records.schema import Measure, RecordError, Turn, answered_turns, measure_record, parse_record
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
        ({"id": "x", "videos": "a.mp4", "conversations": TALK}, "unknown kind of record, with key 'videos'"),
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
        (
            {"id": "x", "system": "Be brief.", "conversations": TALK},
            "key 'system' beside the .*, 'Be brief.'",
        ),
        ({"id": "x", "history": [["Hi", "Ho"]], "conversations": TALK}, "key 'history' .* would be lost"),
        ({"id": "x", "tools": [{"name": "zoom"}], "conversations": TALK}, "key 'tools' .* write it into the turns"),
        ({"id": "x", "image": {"bytes": b"PNG", "path": None}, "conversations": PICTURE}, "holds the bytes of a pic"),
        (
            {"id": "x", "image": [{"bytes": b"PNG"}], "conversations": PICTURE},
            "write them to a file",
        ),
        ({"id": "x", "image": b"PNG", "conversations": PICTURE}, "holds the bytes of a picture"),
        ({"id": "x", "image": "a\0.png", "conversations": PICTURE}, "a path cannot contain a NUL"),
        ({"id": "x", "image": "a\ud800.png", "conversations": PICTURE}, "half of a surrogate pair"),
        ({"id": "x", "conversations": turns_of("Hello?", "a \udfff dog")}, "half of a surrogate pair"),
        ({"id": "x", "image": "a", "conversations": TALK}, "0 <image> in the questions, 1 pictures"),
        ({"id": "x", "image": "a.MP4", "conversations": PICTURE}, "'a.MP4'; the path of a video stands under 'video'"),
        ({"id": "x", "conversations": turns_of("What is <box:0>?", "a dog")}, "no picture that they could be in"),
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


texts = st.text(st.sampled_from("a é\n"), max_size=3)
turns = st.fixed_dictionaries(
    {
        "from": st.sampled_from(["human", "human", "gpt", "gpt", "gpt", "system"]),
        "value": st.one_of(st.builds(lambda a, p, b: a + p + b, texts, st.sampled_from(["", "<image>"]), texts)),
    }
)
raw_records = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(0, 9), texts, st.booleans(), st.none())},
    optional={
        "conversations": st.one_of(st.lists(st.one_of(turns, turns, turns, texts), max_size=5), st.none()),
        "image": st.one_of(st.none(), st.sampled_from(["", "a.jpg", ["a", "b"], ["a"], [], 7, [""]])),
        "model": st.just(""),
        "Image": st.just("a"),
        "video": st.sampled_from(["", "a.mp4"]),
    },
)


@given(raw_records)
@example({"id": 1, "image": "a", "conversations": turns_of("<image>", "b")})
@example({"id": 1, "image": ["a", "b"], "conversations": turns_of("<image><image>", "b", "c", " ")})
@settings(max_examples=300)
def test_measuring_checks_the_same_as_parsing(raw):
    try:
        record = parse_record(raw, "train.json", 3)
    except RecordError as error:
        with pytest.raises(RecordError) as other:
            measure_record(raw, "train.json", 3)
        assert str(other.value) == str(error)
        return
    turns = answered_turns(record.turns)
    characters = sum(len(turn.text) for turn in turns) + 1 if turns else 0
    silent = any(turn.role == "gpt" and not turn.text.strip() for turn in turns)
    assert measure_record(raw) == Measure(record.id, characters, -1 if record.video else len(record.images), silent)


LONG = "a" * 300_000


@pytest.mark.parametrize(
    "raw",
    [
        {"id": LONG, "conversations": "hello"},
        {"id": [LONG] * 9, "conversations": TALK},
        {"id": "x", "image": {LONG: LONG}, "conversations": TALK},
        {"id": "x", LONG: 1, "text": LONG},
        {"id": "x", "system": LONG, "conversations": TALK},
        {"id": "x", "conversations": [{"from": LONG, "value": [LONG]}]},
    ],
)
def test_messages_stay_short(raw):
    for reader in (parse_record, measure_record):
        with pytest.raises(RecordError) as error:
            reader(raw, "train.json", 12)
        assert len(str(error.value)) < 700 and "train.json, record 12" in str(error.value)


def test_empty_texts_of_other_formats_are_passed_over():
    raw = {"id": 1, "system": "", "history": [], "tools": None, "conversations": TALK}
    assert parse_record(raw).turns == parse_record({"id": 1, "conversations": TALK}).turns
