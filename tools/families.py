"""Try the library on model families of other packages, and make the page that lists them.

The models, the reference and the comparison lie in `tests/families/`. They run in an environment of
their own, with the extra `families`: what it brings is heavy, and nobody else needs it.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import ROOT, pins

PAGE = "book/reference/families"
FOLDER = ROOT / "tests" / "families"
ROWS = FOLDER / "rows.json"
ENVIRONMENT = ROOT / ".venv-families"

INTRODUCTION = """\
# Families of models

Does the library compute the right thing for the model that you have? Each row is a model of a
package that people use, with random weights and as small as its configuration allows. In float64
the methods are held to a reference that shares no code with the library: where PyTorch draws the
mask of a dropout, $1 + \\eta$ is put in its place, and from there the definitions are spelt out,
with the full Jacobian of the logits in all $\\eta$ and an explicit $H_{\\text{out}}$. A gradient
is compared along a random direction of all the parameters, with central differences of the
reference's value.

Compared are `explicit_regularizer` by "exact", "jvp", "central" and "sampled\\_labels",
`implicit_noise` by "analytic" and "central", and the loss of `replace_dropout` by "central",
"even\\_odd", and "central" on half of the batch (`share`; where examples share noise or batch norm
that is another value, and is not compared), each but "sampled\\_labels" with its gradient.
*Agrees* means: within $10^{-6}$ of the reference, relative; within $10^{-5}$ for "central", taken
with a step of $10^{-6}$; and for the mean of %(draws)s draws of "sampled\\_labels", within 4
standard errors. The sites and their probabilities are those of the masks that a pass draws, and the
parameters are left as they were.
"""
METHODS = 9
REFUSED = {
    "NeverSupportedError": "Refused for good",
    "NotYetSupportedError": "Refused so far",
    "": "Refused for another reason",
}
"""Headings for the names of errors."""


def environment() -> Path:
    """The Python of the environment, which is made if it is not what it should be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    constraints = ROOT / "requirements.txt"
    asked = (sys.version, constraints.read_text("utf-8"), project["optional-dependencies"])
    wanted = hashlib.sha256(repr(asked).encode()).hexdigest()
    stamp, python = ENVIRONMENT / "installed-for.txt", ENVIRONMENT / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"==> Making {ENVIRONMENT.name} (once; a few minutes)", flush=True)
        subprocess.run((sys.executable, "-m", "venv", "--clear", ENVIRONMENT), check=True)
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
        extra = f"{ROOT}[{pins.OF_ITS_OWN}]"
        subprocess.run((*pip, "--constraint", constraints, "--editable", extra), check=True)
        stamp.write_text(wanted)
    return python


def page(record: dict[str, Any]) -> str:
    """The page, in Markdown, of what `tests/families/run_families.py` has written."""
    made, rows = record["made"], record["rows"]
    versions = ", ".join(sorted({f"{_plain(r['package'])} {r['version']}" for r in rows}))
    how = (
        f"This page is made by `make families`; the last time with Python {made['python']}, "
        f"{versions}."
    )
    lines = [
        INTRODUCTION % {"draws": made["draws"]},
        how,
        "",
        "## Outcomes",
        "",
        "| family | outcome | largest relative error | sites | package |",
        "|---|---|---:|---:|---|",
        *(_line(row) for row in rows),
        "",
        *(line for row in rows for line in _not_compared(row)),
        "*Refused* means: by an error that says what to do, before anything is trained. Its words:",
        "",
    ]
    for error, heading in REFUSED.items():
        refusals = [line for row in rows for line in _refusals(row, error)]
        lines += [f"## {heading}", "", *refusals] if refusals else []
    return "\n".join(lines).rstrip() + "\n"


def _line(row: dict[str, Any]) -> str:
    errors = {name: e for name, e in row["errors"].items() if name != "sampled_labels"}
    outcome = row["verdict"]
    if row["verdict"].startswith("agrees"):
        count = len(row["errors"])
        outcome = "agrees" if count == METHODS else f"{count} of {METHODS} methods agree"
    sites = "" if row["sites"] is None else row["sites"]
    worst = _power(max(errors.values())) if errors else ""
    package = _plain(row["package"])
    return f"| {_plain(row['family'])} | {outcome} | {worst} | {sites} | {package} |"


def _not_compared(row: dict[str, Any]) -> Iterator[str]:
    for method, reason in row["not_compared"].items():
        which = f"Not compared: {_plain(row['family'])} ({_plain(row['package'])})"
        yield f"{which}, by {_plain(method)}, as {_plain(reason)}."
        yield ""


def _refusals(row: dict[str, Any], error: str) -> Iterator[str]:
    for refusal in row["refused"]:
        if next(e for e in REFUSED if refusal["words"].startswith(e)) != error:
            continue
        methods = refusal["methods"]
        which = "" if not row["errors"] else f", by {', '.join(map(_plain, methods))}"
        yield f"**{_plain(row['family'])}** ({_plain(row['package'])}){which}:"
        yield f"> {_plain(refusal['words'])}"
        yield ""


def _power(error: float) -> str:
    digit, exponent = f"{error:.0e}".split("e")
    return f"${digit} \\cdot 10^{{{int(exponent)}}}$"


def _plain(text: str) -> str:
    """Text in which nothing is taken for Markdown, and no `torch.no_grad` for an address."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~]|(?<=\w)\.(?=\w))", r"\\\1", " ".join(text.split()))


def main() -> None:
    """Run the families, and write the page when all of them ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="WORD", help="of names; then nothing is written")
    parser.add_argument("--python", type=Path, help="of an environment that has the packages")
    options = parser.parse_args()
    command = [options.python or environment(), FOLDER / "run_families.py", *options.only]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    status = subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode
    if not options.only:
        record = json.loads(ROWS.read_text("utf-8"))
        (ROOT / f"{PAGE}.md").write_text(page(record), "utf-8")
        print(f"==> {PAGE}.md")
    sys.exit(status)


if __name__ == "__main__":
    main()
