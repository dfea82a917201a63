"""Documents: what they link to is there, and nothing was left to be filled in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(  # git's own list
        ["git", "ls-files", "*.md"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_CITED = re.compile(r"docs/[\w/.-]+\.md|docs/adr/\d{4}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text
    for target in _LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_documents_that_code_cites_are_there() -> None:
    for path in [*ROOT.glob("services/**/*.py"), *ROOT.glob("loadgen/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for cited in _CITED.findall(path.read_text(encoding="utf-8")):
            found = list(ROOT.glob(f"{cited}*"))
            assert found, f"{path.relative_to(ROOT)} cites {cited}"
