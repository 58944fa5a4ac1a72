"""Make the slides of the three lectures: slides/*.md, and the notebooks' committed outputs.

Committed, so that they are the same wherever they are made: what a training gives, and a sentence
that holds of it, may differ on another processor.

A slide types no number and holds no picture of its own. Its source, Markdown with Jinja's braces
written as `<<` and `>>`, asks a cell of a chapter for them:

- `<< figure("what/two_effects", "two_effects-09") >>`: the picture that the cell drew; its text
  alternative is the caption, the cell after it;
- `<< says("apart/dropout_k", "c16", "last epoch: {} %") >>`: the number that it printed there, or
  that answers a vote, with its interval if it has one; `{*}` takes the rest of the line, `…` skips
  something;
- `<< holds("apart/dropout_k", "c17", "last epoch: perplexity rises with k") >>`: nothing on the
  slide, but the build fails where the cell no longer prints this: no sentence outlives its result;
- `<< table("start/quickstart", "quickstart-17") >>`: the cell's table, or some rows and columns;
- `<< equation("derive/explicit", 5) >>`: a numbered equation, which the chapter checks;
- `<< source("what/two_effects", "two_effects-09") >>`: the line that says where a slide has it
  from.

A source that asks for what is not there stops the build, and _build/slides stays as it was.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bs4
import jinja2
import nbformat
import yaml

from tools import ROOT, build_book, equations

SOURCES = ROOT / "slides"
SLIDES = build_book.BUILD / "slides"
SETTINGS = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))

CAPTION = re.compile(r"\*\*Figure \d+\.\*\* (.+)", re.DOTALL)
NUMBER = r"([+-]?\d(?:[\d.,]*\d)?(?: ± [\d.]*\d)?)"


class Missing(Exception):
    """A slide asks a notebook for what it does not hold."""


class Chapters:
    """What the slides may take out of the executed notebooks."""

    def __init__(self, notebooks: dict[str, Any], pictures: Path) -> None:
        self.notebooks = notebooks
        self.pictures = pictures

    def _outputs(self, page: str, cell_id: str) -> list[Any]:
        if page not in self.notebooks:
            raise Missing(f"there is no chapter {page}")
        for cell in self.notebooks[page].cells:
            if cell.get("id") == cell_id and cell.cell_type == "code":
                return cell.outputs
        raise Missing(f"{page} has no code cell {cell_id}")

    def _data(self, page: str, cell_id: str, kind: str) -> str:
        found = [o.data[kind] for o in self._outputs(page, cell_id) if kind in o.get("data", {})]
        if len(found) != 1:
            raise Missing(f"{page}, cell {cell_id}: {len(found)} outputs of {kind}, not one")
        return found[0]

    def figure(self, page: str, cell_id: str) -> str:
        name = f"{page.replace('/', '-')}-{cell_id}.svg"
        (self.pictures / name).write_text(self._data(page, cell_id, "image/svg+xml"), "utf-8")
        cells = self.notebooks[page].cells
        (place,) = (i for i, cell in enumerate(cells) if cell.get("id") == cell_id)
        caption = CAPTION.match(cells[place + 1].source) if place + 1 < len(cells) else None
        if not caption:
            raise Missing(f"{page}, cell {cell_id}: the cell after it is no caption")
        return f"![{_plain(caption.group(1))}](figures/{name})"

    def says(self, page: str, cell_id: str, pattern: str) -> str:
        text = "".join(map(_said, self._outputs(page, cell_id))).replace("\xa0", " ")
        expression = re.sub(r"(\\\s)+", r"\\s+", re.escape(pattern))
        for sign, meaning in ((r"\{\}", NUMBER), (r"\{\*\}", "(.+)"), ("…", "(?s:.*?)")):
            expression = expression.replace(sign, meaning)
        found = re.findall(expression, text)
        if len(found) != 1:
            raise Missing(f"{page}, cell {cell_id}: {pattern!r} is {len(found)} times in:\n{text}")
        return _set(found[0])

    def holds(self, page: str, cell_id: str, sentence: str) -> str:
        self.says(page, cell_id, sentence)
        return ""

    def table(
        self,
        page: str,
        cell_id: str,
        rows: list[str] | None = None,
        columns: list[str] | None = None,
    ) -> str:
        html = bs4.BeautifulSoup(self._data(page, cell_id, "text/html"), "html.parser")
        lines = [
            [cell.get_text(strip=True).replace("\xa0", " ") for cell in line(["th", "td"])]
            for line in html.select("thead tr:first-child, tbody tr")
        ]
        head, body = ["", *lines[0][1:]], {line[0]: line for line in lines[1:]}
        wanted = [0, *(_place(head, name, f"{page}, {cell_id}") for name in columns or head[1:])]
        if unknown := set(rows or []) - set(body):
            raise Missing(f"{page}, cell {cell_id}: no rows {unknown} among {list(body)}")
        chosen = [head, ["---"] * len(head), *(body[name] for name in rows or body)]
        return "\n".join(f"| {' | '.join(_set(line[i]) for i in wanted)} |" for line in chosen)

    def equation(self, page: str, number: int) -> str:
        found = equations.equations(self.notebooks[page])
        if number not in found:
            raise Missing(f"{page} has no equation ({number})")
        body = re.sub(r"\s*\\tag\{\d+\}", "", found[number])
        # A slide is wide: join lines that were broken for a phone. And it ends no sentence.
        body = re.sub(r"\s*\\\\\s*&(\s*\\(q?quad|;|,))+\s*", " ", body)
        body = re.sub(
            r"^(\\begin\{aligned\}\s*&[^&\\]*(\\(?!\\)[^&\\]*)*)\\\\\s*&\s*=", r"\1=", body
        )
        body = re.sub(r"[\s,.]*((\\end\{\w+\}\s*)*)$", r"\n\1", body)
        return f"$$\n{body.strip()}\n$$"

    def source(self, page: str, *cell_ids: str) -> str:
        for cell_id in cell_ids:
            self._outputs(page, cell_id)
        title = self.notebooks[page].cells[0].source.splitlines()[0].removeprefix("# ")
        repository, settings = SETTINGS["repository"], SETTINGS["html"]
        address = repository["url"].removeprefix("https://github.com/")
        colab = f"{SETTINGS['launch_buttons']['colab_url']}/github/{address}/blob/"
        colab += f"{repository['branch']}/book/{page}.ipynb#scrollTo="
        cells = "".join(f", cell [{cell_id}]({colab}{cell_id})" for cell_id in cell_ids)
        return f"{{.source}}\nFrom [{title}]({settings['baseurl']}book/{page}.html){cells}"


def _said(output: Any) -> str:
    """What an output says in words: printed, or the answer to a vote."""
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    return f"{data['text/plain']}\n" if "dropreg-outcome" in data.get("text/html", "") else ""


def _plain(caption: str) -> str:
    """A caption as a text alternative: no links, no emphasis, no dollars about mathematics."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", caption)
    return " ".join(re.sub(r"\\(text|mathrm|operatorname)\b|[*`$\[\]{}\\]", "", text).split())


def _set(text: str) -> str:
    """Typeset what a cell printed: numbers with intervals, minus signs, names of mathematics."""
    text = re.sub(r"(?<!\w)-(?=\d)", "−", text.replace(" ± ", "\xa0±\xa0"))
    for name, tex in (("R", r"$R_{\\text{approx}}$"), ("xi", r"$\\xi_{\\text{approx}}$")):
        text = re.sub(rf"\b{name}_approx", tex, text)
    return re.sub(r"\bDropout_(\d+)", r"Dropout$_{\1}$", text)


def _place(head: list[str], name: str, where: str) -> int:
    if name not in head:
        raise Missing(f"{where}: no column {name!r} among {head}")
    return head.index(name)


def stage(notebooks: dict[str, Any], source: Path, sources: Path = SOURCES) -> None:
    """Lay out what Sphinx reads: settings, style, and the lectures with everything filled in."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(sources, source, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    pictures = source / "figures"
    pictures.mkdir()
    chapters = Chapters(notebooks, pictures)
    # Braces belong to TeX here.
    environment = jinja2.Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    for name in ("figure", "says", "holds", "table", "equation", "source"):
        macro: Callable[..., str] = getattr(chapters, name)
        environment.globals[name] = macro
    for path in sorted(sources.glob("*.md")):
        try:
            text = environment.from_string(path.read_text("utf-8")).render()
        except Missing as problem:
            raise Missing(f"{path.name}: {problem}") from problem
        (source / path.name).write_text(text, "utf-8")


def render(source: Path, slides: Path) -> None:
    """Make the pages; warnings are errors."""
    made = source.with_name(f"{source.name}-made")
    shutil.rmtree(made, ignore_errors=True)
    sphinx = (sys.executable, "-m", "sphinx", "-b", "revealjs", "-E", "-W", "--keep-going", "-q")
    path = os.pathsep.join((str(ROOT / "book" / "_ext"), *sys.path))
    result = subprocess.run(
        (*sphinx, "-d", made / ".doctrees", source, made), env=os.environ | {"PYTHONPATH": path}
    )
    if result.returncode:
        sys.exit(f"FAILED: the slides have warnings (above); {slides} is as it was.")
    shutil.rmtree(made / ".doctrees")
    shutil.rmtree(slides, ignore_errors=True)
    made.rename(slides)


def stored() -> dict[str, Any]:
    """Read the chapters with their committed outputs, under the names that slides use."""
    book = ROOT / "book"
    return {
        path.relative_to(book).with_suffix("").as_posix(): nbformat.read(path, as_version=4)
        for path in build_book.chapters()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    source = build_book.BUILD / "slides-source"
    try:
        stage(stored(), source)
    except Missing as problem:
        sys.exit(f"FAILED: {problem}\n{SLIDES} is as it was.")
    render(source, SLIDES)
    print(f"==> The slides: {(SLIDES / 'index.html').as_uri()}")


if __name__ == "__main__":
    main()
