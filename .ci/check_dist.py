"""Holds a built wheel and sdist to what they must and must not contain.

check_dist.py WHEEL SDIST
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

WHEEL_HAS = {
    "jaxinit/__init__.py",
    "jaxinit/py.typed",
    "jaxinit/cli/__init__.py",
    "jaxinit/report/gpt2.py",
}
SDIST_HAS = {
    *WHEEL_HAS,
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "tests/test_architecture.py",
}


def check(what: str, names: set[str], wanted: set[str]) -> None:
    missing = sorted(wanted - names)
    if missing:
        raise SystemExit(f"{what} lacks {missing}")
    print(f"{what}: {len(names)} files, {sorted({PurePosixPath(n).parts[0] for n in names})}")


def main(wheel: str, sdist: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if not name.endswith("/")}
    check("wheel", in_wheel, WHEEL_HAS)
    if strangers := [n for n in in_wheel if not n.startswith(("jaxinit/", "jaxinit-"))]:
        raise SystemExit(f"wheel installs what is not ours to install: {sorted(strangers)}")
    if not any(name.endswith("/licenses/LICENSE") for name in in_wheel):
        raise SystemExit("wheel lacks the license text")

    with tarfile.open(sdist) as archive:
        in_sdist = {n.partition("/")[2] for n in archive.getnames() if "/" in n}
    check("sdist", in_sdist, SDIST_HAS)
    if (
        modules := {n for n in in_sdist if n.startswith("jaxinit/") and n.endswith(".py")}
        - in_wheel
    ):
        raise SystemExit(f"wheel lacks modules that the sdist has: {sorted(modules)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
