"""Make .venv hold exactly what requirements.txt says, plus this package; do nothing if it does.

Made anew whenever that changes: what is no longer asked for must not linger.

Runs under the system's Python with nothing installed, so it imports the standard library only.
"""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed-for.txt"


def fingerprint() -> str:
    """Hash everything that decides what gets installed, the interpreter and place included."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    parts = (
        sys.version,
        sys.base_prefix,
        ROOT,
        (ROOT / "requirements.txt").read_text("utf-8"),
        package["build-system"],  # not the settings of tools, which change nothing installed
        package["project"],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def run(what: str, *command: str | Path) -> None:
    """Run one step, shown by name; stop with that name if it fails."""
    print(f"==> {what}", flush=True)
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"\nFAILED: {what} (exit code {error.returncode}).\n"
            "The cause stands above. After mending it, run the same command again."
        )


def main() -> None:
    """Create the environment and install into it, unless it is already what it should be."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    STAMP.unlink(missing_ok=True)
    python = VENV / "bin" / "python"
    run(
        "Making the virtual environment .venv (on Debian and Ubuntu: package python3-venv)",
        *(sys.executable, "-m", "venv", "--clear", VENV),
    )
    # Errors only: some indexes make pip warn about every package.
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
    run(
        "Installing the exact environment of requirements.txt (once; a few minutes)",
        *(*pip, "--requirement", ROOT / "requirements.txt"),
    )
    run("Installing dropreg, editable", *(*pip, "--no-deps", "--editable", ROOT))
    run("Checking that the installed packages agree", python, "-m", "pip", "check")
    STAMP.write_text(wanted)


if __name__ == "__main__":
    main()
