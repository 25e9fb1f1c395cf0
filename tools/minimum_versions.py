"""Print constraints for pip that hold every dependency at the lowest version that pyproject.toml allows.

    python tools/minimum_versions.py > constraints.txt
    pip install --constraint constraints.txt --editable ".[all,dev]"

It reads the lines itself: Python 3.10, which is tried with them, has no reader of TOML.
"""

import re
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
BOUND = re.compile(
    r'"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<version>[\d.]+)(?:,[^";]*)?(?:; *(?P<marker>[^"]+))?"'
)


def constraints(text: str) -> list[str]:
    """A line for each lower bound in the text of a pyproject.toml, with the systems that it is for.

    Only the tables ``project`` and ``project.*`` count, so what builds the package is left alone. What has no
    lower bound is left out.
    """
    found = []
    table = ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[] ")
        if table.partition(".")[0] == "project" and not line.lstrip().startswith("#"):
            for bound in BOUND.finditer(line):
                marker = f"; {bound['marker']}" if bound["marker"] else ""
                found.append(f"{bound['name']}=={bound['version']}{marker}")
    return found


if __name__ == "__main__":
    print(*constraints(PYPROJECT.read_text(encoding="utf-8")), sep="\n")
