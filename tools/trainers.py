"""Run the tests of the library in the trainers of other packages: transformers, Lightning, …

What these bring lies in an environment of its own, `.venv-trainers`, which sees the book's, too: so
both have one PyTorch, and the book is built with nothing of theirs. Words are given to pytest, as in
`.venv/bin/python -m tools.trainers tests/integrations/test_keras.py`.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools import ROOT, pins

ENVIRONMENT = ROOT / f".venv-{pins.ON_TOP}"
TESTS = ROOT / "tests" / "integrations"


def environment() -> Path:
    """The Python of the environment, which is made if it is not what it should be."""
    files = [ROOT / pins.PINS, ROOT / pins.PINS_ON_TOP]
    beneath = sysconfig.get_path("purelib")
    asked = (sys.version, beneath, ENVIRONMENT, *(file.read_text("utf-8") for file in files))
    wanted = hashlib.sha256(repr(asked).encode()).hexdigest()
    stamp, python = ENVIRONMENT / "installed-for.txt", ENVIRONMENT / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"==> Making {ENVIRONMENT.name} (once; a minute)", flush=True)
        subprocess.run((sys.executable, "-m", "venv", "--clear", ENVIRONMENT), check=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT)}))
        (own / "beneath.pth").write_text(f"import site; site.addsitedir({beneath!r})\n", "utf-8")
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
        constraints = [word for file in files for word in ("--constraint", file)]
        asked_for = pins.wanted(ROOT, pins.ON_TOP)
        subprocess.run((*pip, *constraints, *asked_for), check=True)
        stamp.write_text(wanted)
    return python


def main() -> None:
    python, words = environment(), sys.argv[1:] or [str(TESTS)]
    # The settings of pyproject.toml leave these files out, for the environment that lacks trainers.
    coverage = [f"--cov-config={os.devnull}", "--cov-branch", "--cov-fail-under=95"]
    coverage += ["--cov=dropreg.integrations", "--cov-report=term-missing:skip-covered"]
    command = [python, "-m", "pytest", "-q", *words, *([] if sys.argv[1:] else coverage)]
    settings = {"COVERAGE_FILE": str(ENVIRONMENT / "coverage")}
    sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode)


if __name__ == "__main__":
    main()
