"""Execute the book's notebooks side by side and render the book.

`build` leaves the finished book in _build/html, or what was there before if anything failed.
`notebooks` stores the outputs of the same execution in book/, for Colab's and GitHub's readers.
`links` asks each address outside the book whether it answers (a scheduled workflow does this).

A notebook is executed when what decides its outputs has changed since those in book/ were made, and
since the execution that is kept in _build/executed: see cache_key.py. `--again` executes it anyway.
`--plain` leaves Jupyter Book out, see plain_sphinx.py; the pages are the same.
"""

import argparse
import base64
import concurrent.futures
import datetime
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import yaml
from playwright.sync_api import sync_playwright

from tools import ROOT, equations, first_verdicts, labs, lite, plain_sphinx, staging, times
from tools.cache_key import cache_key
from tools.notebooks import clean, code_hash, code_of

BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
HTML = BUILD / "html"
PDF = "two-effects-of-dropout.pdf"
PAGE_NUMBER = '<p class="pageNumber" style="width: 100%; font-size: 8pt; text-align: center"></p>'
GENERATED = {module.PAGE: module.index for module in (labs, first_verdicts, equations, times)}
# The shell has no window, and opens a page in half the time.
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
HOW_TO_GET_A_BROWSER = (
    "no Chromium or Chrome found: on Debian run `apt-get install chromium-headless-shell`; "
    "elsewhere put one of the two on the PATH"
)

# A chapter runs in about a minute; one cell that takes ten hangs.
CELL_TIMEOUT = 600
# The figure of the first page: made by the cell that carries this tag.
LANDING_TAG = "landing-page"
LANDING_FIGURE = Path("book/_static/finding.png")


def pages(toc: Any) -> Iterator[str]:
    """Yield every page of the table of contents, without its suffix."""
    if isinstance(toc, dict):
        for key, value in toc.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from pages(value)
    elif isinstance(toc, list):
        for item in toc:
            yield from pages(item)


def read_toc(root: Path = ROOT) -> list[str]:
    return list(pages(yaml.safe_load((root / "_toc.yml").read_text("utf-8"))))


def chapters(root: Path = ROOT) -> list[Path]:
    """List the notebooks among the book's pages."""
    paths = [root / f"{page}.ipynb" for page in read_toc(root)]
    return [path for path in paths if path.exists()]


def kept_at(notebook: Any) -> Path:
    """Say where the execution of a notebook is kept."""
    return EXECUTED / f"{cache_key(notebook)}.ipynb"


def execute(notebook: Any, folder: Path, kept: Path) -> float:
    """Execute a notebook in its folder, keep the result whole, return the seconds it took."""
    start, before = time.perf_counter(), os.times()
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        # Else every kernel warns that it talks over TCP, as all kernels do.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except RuntimeError as error:  # of the kernel, not of a cell: two may be given the same port
        print(f"    once more, as the kernel failed: {error}", flush=True)
        client.execute()
    seconds, after = time.perf_counter() - start, os.times()
    notebook.metadata.run = {
        "key": kept.stem,
        # Of the kernel, a child that has ended; unlike `seconds`, hardly more on a busy machine.
        "processor_seconds": round(sum(after[2:4]) - sum(before[2:4]), 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    half_written = kept.with_suffix(".part")
    nbformat.write(notebook, half_written)
    half_written.rename(kept)
    return seconds


def took_before(notebook: Any) -> float:
    """Processor seconds of the execution whose outputs a notebook shows; infinite without any."""
    return float(notebook.metadata.get("run", {}).get("processor_seconds", math.inf))


def execute_all(paths: list[Path], workers: int, *, again: bool = False) -> dict[Path, Any]:
    """Return each notebook with outputs that are current, executing those which have none.

    Args:
        paths: Of notebooks of the book.
        workers: How many are executed side by side.
        again: Execute all, as for times on a quiet machine.
    """
    EXECUTED.mkdir(parents=True, exist_ok=True)
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    kept = {path: kept_at(nb) for path, nb in notebooks.items()}
    stale = [
        path
        for path, notebook in notebooks.items()
        if again or notebook.metadata.get("run", {}).get("key") != kept[path].stem
    ]
    todo = [path for path in stale if again or not kept[path].exists()]
    print(f"==> Executing {len(todo)} of {len(notebooks)} notebooks, {workers} at once", flush=True)
    # The longest first, so that no worker is left alone with one of them in the end.
    todo.sort(key=lambda path: -took_before(notebooks[path]))
    failed = []
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        runs = {
            pool.submit(execute, notebooks[path], path.parent, kept[path]): path for path in todo
        }
        for run in concurrent.futures.as_completed(runs):
            name = runs[run].relative_to(ROOT)
            try:
                print(f"    {name}: {run.result():.0f} s", flush=True)
            # A failing cell, a dead kernel, a time-out: each is shown, and all stop the build.
            except Exception as error:
                failed.append(str(name))
                print(f"    {name}: FAILED\n{error}", flush=True)
    if failed:
        sys.exit(f"FAILED notebooks: {', '.join(failed)}. The tracebacks stand above.")
    if paths == chapters():  # all that is kept and not among these is of the past
        for file in set(EXECUTED.iterdir()) - set(kept.values()):
            file.unlink()
    for path in stale:
        fill(notebooks[path], nbformat.read(kept[path], as_version=4))
    return notebooks


def fill(notebook: Any, executed: Any) -> None:
    """Put the outputs of an execution into a notebook of the same code, and clean its metadata."""
    done = iter(cell for cell in executed.cells if cell.cell_type == "code")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            result = next(done)
            cell.outputs, cell.execution_count = result.outputs, result.execution_count
    # Lets a test see that code was edited after its outputs were made.
    notebook.metadata.executed_code = code_hash(notebook)
    notebook.metadata.run = executed.metadata.run
    clean(notebook)


def landing_figure(notebooks: dict[Path, Any], kind: str) -> str:
    """Return the figure of the first page out of the outputs of the cell that makes it.

    Args:
        notebooks: Executed.
        kind: image/png, in base64, for previews and where the repository is looked at; or
            image/svg+xml, for the page.
    """
    (cell,) = (
        cell
        for notebook in notebooks.values()
        for cell in notebook.cells
        if LANDING_TAG in cell.metadata.get("tags", [])
    )
    (figure,) = (o.data[kind] for o in cell.outputs if kind in o.get("data", {}))
    return str(figure)


def show_landing_figure(page: Path, svg: str) -> None:
    """Put the figure into the first page in the theme's colours, where it names its picture."""
    text = page.read_text("utf-8")
    (picture,) = re.finditer(rf"!\[([^]]+)\]\({re.escape(LANDING_FIGURE.as_posix())}\)", text)
    name = "landing-figure"
    figure = (
        f'<figure class="dropreg-figure" id="{name}">{staging.themed(svg, name)}'
        f'<figcaption class="sr-only" id="{name}-caption">{picture.group(1)}</figcaption></figure>'
    )
    page.write_text(text.replace(picture.group(), figure), "utf-8")


def browser() -> str | None:
    """Return the path of the browser that prints the book, and that tests it."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def version() -> str:
    """Say which book this is: the package's version, and the commit with its date."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    git = ("git", "-C", ROOT, "log", "-1", "--format=%h of %cs")
    commit = subprocess.run(git, capture_output=True, text=True)
    if commit.returncode:  # an unpacked archive
        made = f"built on {datetime.datetime.now(datetime.UTC).date().isoformat()}"
    else:
        made = f"commit {commit.stdout.strip()}"
        if subprocess.run(("git", "-C", ROOT, "diff", "--quiet", "HEAD")).returncode:
            made += ", with changes"
    return f"{package['name']} {package['version']}, {made}"


def moved(text: str, repository: str | None) -> str:
    """Make a text of this repository that of a fork.

    Args:
        text: Any source of the book.
        repository: `owner/name`, as GitHub's workflows give it in GITHUB_REPOSITORY; without it
            the text stays as it is.
    """
    if not repository:
        return text
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    here = config["repository"]["url"].removeprefix("https://github.com/")
    owner, name = repository.split("/")
    host = f"{owner.lower()}.github.io"
    # GitHub serves a repository that is named like the host at its root.
    site = f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"
    return text.replace(config["html"]["baseurl"], site).replace(here, repository)


def stage(notebooks: dict[Path, Any], app: Path | None = None) -> Path:
    """Lay out what Sphinx reads: the sources, with the executed notebooks in place.

    Args:
        notebooks: Executed.
        app: That of the page *Try it*, if there is one.
    """
    source = BUILD / "source"
    shutil.rmtree(source, ignore_errors=True)
    hidden = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT / "book", source / "book", ignore=hidden)
    for name in ("_config.yml", "_toc.yml", "intro.md"):
        shutil.copy(ROOT / name, source)
    for path, notebook in notebooks.items():
        page = staging.presented(notebook, path.stem)
        if path == ROOT / lite.NOTEBOOK:
            page.cells.insert(1, nbformat.v4.new_markdown_cell(lite.invitation(app)))
        nbformat.write(page, source / path.relative_to(ROOT))
    (source / LANDING_FIGURE).write_bytes(base64.b64decode(landing_figure(notebooks, "image/png")))
    show_landing_figure(source / "intro.md", landing_figure(notebooks, staging.SVG))
    by_page = {path.relative_to(ROOT): notebook for path, notebook in notebooks.items()}
    for page, index in GENERATED.items():
        (source / f"{page}.md").write_text(index(by_page), "utf-8")
    for path in source.rglob("*"):
        if path.suffix in (".ipynb", ".md", ".yml"):
            text = path.read_text("utf-8")
            path.write_text(moved(text, os.environ.get("GITHUB_REPOSITORY")), "utf-8")
    config = yaml.safe_load((source / "_config.yml").read_text("utf-8"))
    config["sphinx"]["config"] |= {
        "book_version": version(),
        "book_pdf": PDF if browser() else "",
        "generated_pages": list(GENERATED),
    }
    (source / "_config.yml").write_text(yaml.safe_dump(config), "utf-8")
    plain_sphinx.write_conf(config, source)
    return source


def sphinx(source: Path, builder: str, *, plain: bool = False) -> Path:
    """Run one of Sphinx's builders on what is staged; stop at the first page it cannot make.

    Args:
        source: As `stage` leaves it.
        builder: Sphinx's name for it.
        plain: Without Jupyter Book.
    """
    made = source / "_build" / builder
    # Warnings are errors, and so is a reference to nothing.
    strict = ("-W", "--keep-going", "-n", "-q")
    command: tuple[str | Path, ...]
    if plain:
        read = made.with_name(".doctrees")  # else among the pages, and published with them
        command = (sys.executable, "-m", "sphinx", "-b", builder, *strict, "-d", read, source, made)
    else:
        jupyter_book = Path(sys.executable).with_name("jupyter-book")
        command = (jupyter_book, "build", source, "--builder", builder, *strict)
    # Its closing words on standard output name a folder that is about to be moved.
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        print(result.stdout)
        sys.exit("FAILED: the book has warnings (above); _build/html is as it was.")
    return made


def print_book(page: Path, pdf: Path) -> None:
    """Print the book, as one page of HTML, to a PDF with an outline and links."""
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        opened = program.new_page()
        opened.set_default_timeout(15 * 60_000)
        opened.goto(page.as_uri())
        opened.evaluate("() => MathJax.startup.promise")
        # On paper nobody votes, and nothing unfolds: hints and solutions are open. Code that only
        # serves is left out by book.css, and of a check the badge says that it passed.
        opened.evaluate(
            """() => {
                document.querySelectorAll('[hidden="until-found"]').forEach(
                    e => e.removeAttribute('hidden'));
                document.querySelectorAll('details').forEach(
                    d => { d.open = !d.closest('.cell:not(.tag_solution)'); }); }"""
        )
        # Each word of code that has an element becomes an entry of the file, and most words have
        # one: without those of the plain words, the file is a third smaller and made faster.
        opened.evaluate(
            """() => {
                for (const word of document.querySelectorAll('pre span'))
                    if (!/^[kscm]/.test(word.className))  // keyword, string, comment, number
                        word.replaceWith(...word.childNodes);
                document.querySelectorAll('pre').forEach(code => code.normalize()); }"""
        )
        opened.pdf(
            path=pdf,
            format="A4",
            margin={"top": "15mm", "bottom": "15mm", "left": "8mm", "right": "8mm"},
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=PAGE_NUMBER,
            print_background=True,
            outline=True,
            tagged=True,
        )
        program.close()


def render(source: Path, app: Path | None = None, *, plain: bool = False) -> None:
    """Render from scratch: Sphinx's increments forget the warnings of pages they do not reread."""
    print("==> Rendering", flush=True)
    made = sphinx(source, "html", plain=plain)
    missing = [page for page in read_toc() if not (made / f"{page}.html").is_file()]
    if missing:
        sys.exit(f"FAILED: pages not made: {', '.join(missing)}; _build/html is as it was.")
    if browser():
        print("==> Printing", flush=True)
        whole = sphinx(source, "singlehtml", plain=plain)
        print_book(whole / f"{read_toc()[0]}.html", made / PDF)
    elif os.environ.get("CI"):
        sys.exit(f"FAILED: no PDF of the book: {HOW_TO_GET_A_BROWSER}.")
    else:
        print(f"    without the PDF: {HOW_TO_GET_A_BROWSER}.")
    if app:
        shutil.copytree(app, made / lite.FOLDER)
    shutil.rmtree(HTML, ignore_errors=True)
    made.rename(HTML)


def store(notebooks: dict[Path, Any]) -> None:
    """Write executed notebooks back, but not over one that was edited while it ran."""
    for path, notebook in notebooks.items():
        now = nbformat.read(path, as_version=4)
        if code_of(now) != code_of(notebook):
            sys.exit(f"{path.relative_to(ROOT)} was edited while it ran: run this again.")
        fill(now, notebook)
        nbformat.write(now, path)
    stored = {path: nbformat.read(path, as_version=4) for path in chapters()}
    (ROOT / LANDING_FIGURE).write_bytes(base64.b64decode(landing_figure(stored, "image/png")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["build", "notebooks", "links"])
    parser.add_argument("only", nargs="*", type=Path, help="these notebooks (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="notebooks executed side by side")
    parser.add_argument("--again", action="store_true", help="execute what is current, too")
    parser.add_argument("--plain", action="store_true", help="without Jupyter Book: Sphinx alone")
    arguments = parser.parse_args()
    if arguments.command == "notebooks":
        paths = [path.resolve() for path in arguments.only] or chapters()
        store(execute_all(paths, arguments.workers, again=arguments.again))
        print("==> Outputs stored: look at `git diff`, then commit.")
    elif arguments.command == "links":
        stored = {path: nbformat.read(path, as_version=4) for path in chapters()}
        sphinx(stage(stored), "linkcheck", plain=arguments.plain)
    else:
        notebooks = execute_all(chapters(), arguments.workers, again=arguments.again)
        site = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["html"]["baseurl"]
        app = lite.make(moved(site, os.environ.get("GITHUB_REPOSITORY")))
        render(stage(notebooks, app), app, plain=arguments.plain)
        print(f"==> The book: {(HTML / 'index.html').as_uri()}\n    or `make serve`")


if __name__ == "__main__":
    main()
