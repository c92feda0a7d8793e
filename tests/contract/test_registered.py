"""Everything that is registered passes the contract: once whole for each role, the rest without every layout."""

from pathlib import Path

import pytest

from tests.contract.cases import HELPERS, case_of, registered, role_of
from tests.contract.contract import Contract

NAMES = sorted(registered())


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, paths: dict[str, str], tmp_path: Path) -> None:
    part = registered()[name]
    case = case_of(part, paths)
    first = next(other for other in NAMES if role_of(registered()[other]) == case.role)
    contract = Contract(case.model, paths, tmp_path)
    if name == first:
        contract.whole()
    else:
        contract.short()


def test_a_part_without_a_role_is_named() -> None:
    class Stray:
        """No part of a known kind."""

    with pytest.raises(AssertionError, match="Stray is registered in MODELS, but nothing tests it: derive it from"):
        role_of(Stray)
    assert HELPERS.isdisjoint(NAMES)
