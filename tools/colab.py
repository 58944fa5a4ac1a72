"""Run notebooks as Colab does: alone in an empty folder, the package installed by their first cell.

Run by the Python of an environment that has what Colab has (torch, the usual packages, a kernel)
and nothing of ours. The first cell is executed as it stands; only git is told that this repository,
as it lies on the disk, answers for its address. The run fails if a cell fails, or if the
installation changed or removed a package that was there.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 1800


def git(*arguments: str | Path, folder: Path) -> str:
    command = ("git", *arguments)
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> None:
    """Commit the working tree, edits and new files included, to a repository of its own."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git("init", "--quiet", folder=folder)
    git("add", "--all", folder=folder)
    me = ("-c", "user.name=dropreg", "-c", "user.email=dropreg@localhost")
    git(*me, "commit", "--quiet", "--message", "as on the disk", folder=folder)


def packages() -> dict[str, str]:
    """Name and version of every installed package, as pip sees them."""
    command = (sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {each["name"]: each["version"] for each in json.loads(listed)}


def address(notebook: Path) -> str:
    """The repository that the notebook's first code cell installs from."""
    cells = nbformat.read(notebook, as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    return str(first.rpartition("git+")[2].rstrip('"'))


def run(notebook: Path) -> None:
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(notebook, alone)
        opened = nbformat.read(Path(alone) / notebook.name, as_version=4)
        client = nbclient.NotebookClient(
            opened,
            kernel_name="python3",
            timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": alone}},
        )
        client.execute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="these (default: all of book/)")
    paths = parser.parse_args().notebooks or sorted((ROOT / "book").rglob("*.ipynb"))
    paths = [path.resolve() for path in paths if ".ipynb_checkpoints" not in path.parts]
    if importlib.util.find_spec("dropreg") is not None:
        sys.exit("dropreg is installed here already, or on PYTHONPATH: nothing would be tested.")
    before = packages()
    failed = []
    with tempfile.TemporaryDirectory() as repository:
        snapshot(Path(repository))
        os.environ |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": address(paths[0]),
        }
        for path in paths:
            start = time.perf_counter()
            try:
                run(path)
                outcome = f"{time.perf_counter() - start:.0f} s"
            # A failing cell, a dead kernel, a time-out: each is shown, and the others still run.
            except Exception as error:
                failed.append(path.name)
                outcome = f"FAILED\n{error}"
            print(f"    {path.relative_to(ROOT)}: {outcome}", flush=True)
    after = packages()
    print("    added:", ", ".join(sorted(f"{k} {after[k]}" for k in after.keys() - before.keys())))
    changed = {k: (v, after.get(k)) for k, v in before.items() if after.get(k) != v}
    if changed:
        sys.exit(f"FAILED: the first cell changed what was installed: {changed}")
    if failed:
        sys.exit(f"FAILED notebooks: {', '.join(failed)}")


if __name__ == "__main__":
    main()
