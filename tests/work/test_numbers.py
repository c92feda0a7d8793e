"""Numbers on command lines."""

from argparse import ArgumentTypeError

import pytest

from mg_llava.work.numbers import positive, whole


def test_numbers_of_their_range_are_read() -> None:
    assert [whole()("1"), whole(0)("0"), whole(0, 9)("9"), positive("0.5")] == [1, 0, 9, 0.5]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (whole(), "0", "'0' is no whole number from 1 on"),
        (whole(0), "-3", "'-3' is no whole number from 0 on"),
        (whole(0, 65535), "65536", "'65536' is no whole number from 0 to 65535"),
        (whole(), "1.5", "'1.5' is no whole number"),
        (whole(), "many", "'many' is no whole number"),
        *((positive, text, f"{text!r} is no number above 0") for text in ("0", "-1", "nan", "inf", "1e999", "x")),
    ],
)
def test_other_numbers_are_refused(read, text: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        read(text)
