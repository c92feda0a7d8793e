"""Pages name files that are there."""

import re
from pathlib import Path

import pytest

from tests.house.source import ROOT

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
PATH = re.compile(r"`((?:mg_llava|configs|tools|tests|data/nano)/[\w./-]+\.(?:py|md|txt|json))`")
OTHERS = {".venv", ".venv-current", "work_dirs", "node_modules"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if not OTHERS & set(path.parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    links = {name for name in LINK.findall(text) if not (page.parent / name).exists()}
    paths = {name for name in PATH.findall(text) if not (ROOT / name).exists()}
    assert links | paths == set()
