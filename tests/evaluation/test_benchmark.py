"""The registry of benchmarks, and what every registered one must have."""

import pytest

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.pope import POPE


@pytest.mark.parametrize("name", BENCHMARKS.scorers)
def test_every_scorer_is_whole(name: str) -> None:
    kind = BENCHMARKS.scorers[name]
    assert kind.scorer == name and kind.form and callable(kind.load) and callable(kind.rate)
    assert kind.__doc__ and kind.prompts and all(kind.headline)
    if kind.judge is not None:
        assert kind.judge.version.startswith(("video_qa", name)) and kind.judge.attempts >= 1
    own = [release.name for release in vars(kind).get("releases", ())]
    assert len(set(own)) == len(own) and all(BENCHMARKS.releases[release][0] is kind for release in own)


def test_a_class_is_found_by_its_name_with_and_without_scope() -> None:
    for name in ("POPE", "mg_llava.POPE", "mg_llava.evaluation.families.pope.POPE"):
        assert BENCHMARKS.get(name) is POPE
    with pytest.raises(KeyError, match=r"'mg_llava\.PPOE' is no known benchmark; did you mean 'POPE'"):
        BENCHMARKS.get("mg_llava.PPOE")


def test_two_benchmarks_of_one_name_are_refused() -> None:
    class POPE(Benchmark):
        """Another one."""

        def questions(self) -> list[Question]:
            return []

    with pytest.raises(ValueError, match=r"two benchmarks are called POPE: in mg_llava\.evaluation\.families\.pope"):
        BENCHMARKS.register(POPE)
