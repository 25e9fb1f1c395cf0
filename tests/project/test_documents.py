"""Links between documents and names of files lead somewhere, and the index of decisions is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECORDS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SOURCE_NAME = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|cpp|toml|sh|js|c))`")
_DOCUMENT_NAME = re.compile(r"\bdocs/[\w./-]+\.md\b")


def read_prose(document: Path) -> str:
    """The text of a document without its fenced code."""
    return _CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = _HEADING.findall(read_prose(document))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_its_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    broken = []
    for link in _LINK.findall(read_prose(document)):
        if re.match(r"[a-z]+:", link):  # outside this repository
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_source_files_that_it_names_exist(document: Path) -> None:
    folders = [ROOT, ROOT / "src", ROOT / "src/mlxlava", ROOT / "tests"]
    named = _SOURCE_NAME.findall(read_prose(document))
    assert not [name for name in named if not any((folder / name).is_file() for folder in folders)]


def test_the_source_names_only_documents_that_exist() -> None:
    files = [
        path
        for folder in ("src", "tests", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".cpp", ".toml", ".sh", ".js", ".html"}
    ]
    named = {
        (name_of(path), name) for path in files for name in _DOCUMENT_NAME.findall(path.read_text("utf-8"))
    }
    assert named
    assert not {(path, name) for path, name in named if not (ROOT / name).is_file()}


def test_the_index_of_decisions_lists_each_record_with_its_date_and_title() -> None:
    rows = []
    for number, record in enumerate(RECORDS, start=1):
        text = record.read_text(encoding="utf-8")
        head = re.match(rf"# {number:03}\. (.+)\n\nDate: (\d{{4}}-\d\d-\d\d)\.[^\n]* Status: ", text)
        assert head, f"{record.name} does not begin with its number, title, date and status"
        rows.append(f"| [{number:03}]({record.name}) | {head[2]} | {head[1]} |")
        sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert sections[0] == "Context" and sections[1].startswith("Decision"), record.name
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    assert [line for line in index.splitlines() if line.startswith("| [")] == rows
