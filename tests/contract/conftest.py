"""The toys on disk."""

import pytest

from tests.contract.cases import write_all


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the toys."""
    return write_all(tmp_path_factory.mktemp("contract"))
