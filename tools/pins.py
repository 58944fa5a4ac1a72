"""Pin in requirements.txt what pyproject.toml asks for, with all that this needs.

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
"""The extra that has an environment of its own; see `tools.families`."""


def wanted(root: Path) -> list[str]:
    """What the package and all its extras ask for, but the one with its own environment."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (line for name, extra in extras.items() if name != OF_ITS_OWN for line in extra)
    return [*project["dependencies"], *lines]


def main(root: Path = ROOT) -> None:
    path = root / "requirements.txt"
    lines = path.read_text("utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        dry = ("--dry-run", "--ignore-installed", "--report", report, "--constraint", path)
        if subprocess.run((*pip, *dry, *wanted(root))).returncode:
            sys.exit("FAILED: requirements.txt is as it was, the cause stands above.")
        found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    # Not the build ("+cpu"), which pip chooses where it installs.
    versions = {each["name"]: each["version"].split("+")[0] for each in found}
    pins = [f"{name}=={versions[name]}" for name in sorted(versions, key=str.lower)]
    comment = [line for line in lines if line.startswith("#")]
    path.write_text("\n".join([*comment, *pins, ""]), "utf-8")
    print(f"==> {len(pins)} pins; new: {', '.join(sorted(set(pins) - set(lines))) or 'none'}")


if __name__ == "__main__":
    main()
