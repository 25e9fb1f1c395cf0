"""Say what keeps a tag from being a release; nothing where all is well. The release workflow runs it.

    python tools/release.py v0.2.0

The version stands in src/mlxlava/__init__.py; pyproject.toml reads it there. CITATION.cff has to repeat it,
and CHANGELOG.md has a section for it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    """The version of the package."""
    text = (ROOT / "src/mlxlava/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def disagreements() -> list[str]:
    """Where another version stands than that of the package."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = []
    if not re.search(rf"^version: {re.escape(version())}$", citation, re.MULTILINE):
        found.append(f"CITATION.cff does not say version: {version()}")
    if not re.search(rf"^## {re.escape(version())}( |$)", changes, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section ## {version()}")
    return found


def main() -> None:
    """Compare the tag on the command line with the version."""
    found = disagreements()
    if sys.argv[1:] != [f"v{version()}"]:
        found.append(f"the tag {' '.join(sys.argv[1:])} is not v{version()}")
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
