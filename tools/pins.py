"""Pin what pyproject.toml asks for, with all that this needs.

In requirements.txt what the book and the tests need, in requirements-trainers.txt what the tests in
trainers of other packages, and on a cluster, need beyond.

What is pinned already stays as it is: to have something upgraded, delete its line first. pip works
out the rest as if it installed everything, and installs nothing.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tools import ROOT

OF_ITS_OWN = "families"
"""The extra that has an environment of its own, unpinned; see `tools.families`."""
ON_TOP = ("trainers", "cluster")
"""The extras that share one whose pins are those of .venv and some more; see `tools.trainers`."""
PINS, PINS_ON_TOP = "requirements.txt", "requirements-trainers.txt"


def wanted(root: Path, *chosen: str) -> list[str]:
    """What some extras ask for; if none the package, and all extras in the book's environment."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    if chosen:
        return [line for name in chosen for line in extras[name]]
    elsewhere = (OF_ITS_OWN, *ON_TOP)
    lines = (line for name, extra in extras.items() if name not in elsewhere for line in extra)
    return [*project["dependencies"], *lines]


def main(root: Path = ROOT) -> None:
    shared = pin(root / PINS, wanted(root), {})
    pin(root / PINS_ON_TOP, wanted(root, *ON_TOP), shared)


def pin(path: Path, lines: list[str], shared: dict[str, str]) -> dict[str, str]:
    """Write a file of pins: all but those of another file, which hold here too."""
    before = path.read_text("utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        report, others = Path(folder, "report.json"), Path(folder, "others.txt")
        others.write_text("\n".join(f"{name}=={version}" for name, version in shared.items()))
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        dry = ("--dry-run", "--ignore-installed", "--report", report)
        constraints = ("--constraint", path, "--constraint", others)
        if subprocess.run((*pip, *dry, *constraints, *lines)).returncode:
            sys.exit(f"FAILED: {path.name} is as it was, the cause stands above.")
        found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    # Not the build ("+cpu"), which pip chooses where it installs.
    versions = {each["name"]: each["version"].split("+")[0] for each in found}
    own = sorted(versions.keys() - shared.keys(), key=str.lower)
    pins = [f"{name}=={versions[name]}" for name in own]
    comment = [line for line in before if line.startswith("#")]
    path.write_text("\n".join([*comment, *pins, ""]), "utf-8")
    new = ", ".join(sorted(set(pins) - set(before))) or "none"
    print(f"==> {path.name}: {len(pins)} pins; new: {new}")
    return versions


if __name__ == "__main__":
    main()
