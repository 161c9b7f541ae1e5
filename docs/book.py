"""`make book`: a static site of a study's executed notebooks, its report and the kit's pages, in outputs/book.

    python docs/book.py params/pocket.yaml

It takes what `w2s run` left in outputs/<study> (also that of the studies under `also`), and trains nothing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

from w2s.params import HOME, StudyParams

NOT_RUN = "*A batch run leaves this notebook out, so it stands here without outputs: `make lab` opens it.*"
INDEX = """# w2s: weak-to-strong deception

The notebooks of a study as they ran, its report, and the pages of the kit. Start with the report, or with notebook 00.

```{{warning}}
The pairs are about harmful requests. Real data (HH-RLHF, CAI, your own) can hold offensive and upsetting text, and a
notebook shows it where `show_text` was true. The texts of the pocket world are invented and harmless.
```

{studies}

```{{toctree}}
:caption: The kit
:maxdepth: 1

{pages}
```
"""
STUDY = """```{{toctree}}
:caption: Study {name}
:maxdepth: 1

{pages}
```
"""
REPORT = """# Report of {name}

<p><a href="../{name}.report.html">The report alone</a>, to print or to send: one file that needs nothing else.</p>
<iframe class="report" src="../{name}.report.html" title="Report of {name}"></iframe>
"""


def studies_of(path: Path) -> list[Path]:
    """The folders of a parameter file's study and of those under `also`; ValueError where one has not been run."""
    params = StudyParams.load(path)
    folders = []
    for file in [path, *(path.parent / name for name in params.also)]:
        study = StudyParams.load(file)
        folders.append(study.root / study.study)
        if not (folders[-1] / "report.html").is_file() or not list(folders[-1].glob("*.ipynb")):
            raise ValueError(
                f"{folders[-1]}: no executed notebooks and report there; run make study STUDY={path} first"
            )
    return folders


def write_sources(folders: list[Path], to: Path) -> None:
    """Lay out the pages as the kit lies, so that their links hold: README at the top, notebooks in <study>/."""
    for path in [HOME / "README.md", HOME / "ARCHITECTURE.md", *sorted((HOME / "docs").glob("*.md"))]:
        (to / path.relative_to(HOME)).parent.mkdir(exist_ok=True)
        shutil.copy(path, to / path.relative_to(HOME))
    for path in (HOME / "docs").glob("*.png"):
        shutil.copy(path, to / "docs")
    kit = [page.relative_to(to).with_suffix("").as_posix() for page in sorted(to.rglob("*.md"))]
    parts = []
    for folder in folders:
        (to / folder.name).mkdir(exist_ok=True)  # a study may be called docs
        for path in (HOME / "notebooks").glob("*.ipynb"):  # what ran takes its place below
            notebook = nbformat.read(path, as_version=4)
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_RUN))
            nbformat.write(notebook, to / folder.name / path.name)
        for path in folder.glob("*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:  # the parameters of a batch run, all of them, are folded
                if "injected-parameters" in cell.metadata.get("tags", []):
                    cell.metadata.tags.append("hide-input")
            nbformat.write(notebook, to / folder.name / path.name)
        pages = ["report", *sorted(path.stem for path in (to / folder.name).glob("*.ipynb"))]
        (to / folder.name / "report.md").write_text(REPORT.format(name=folder.name), encoding="utf-8")
        parts.append(STUDY.format(name=folder.name, pages="\n".join(f"{folder.name}/{page}" for page in pages)))
    index = INDEX.format(studies="\n".join(parts), pages="\n".join(["README", *(p for p in kit if p != "README")]))
    (to / "index.md").write_text(index, encoding="utf-8")


def build(folders: list[Path], to: Path) -> None:
    """Build the site in a scratch folder, then put it in the place of an older one; ValueError where Sphinx fails."""
    try:
        import furo  # noqa: F401
        import latex2mathml  # noqa: F401
        import myst_nb  # noqa: F401
        from sphinx.cmd.build import build_main
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; pip install -e '.[book]' -c constraints.txt") from None
    if to.exists() and not (to / "objects.inv").is_file():
        raise ValueError(f"{to}: a folder that is not a book stands there; move it away")
    with TemporaryDirectory() as scratch:
        sources, pages = Path(scratch) / "sources", Path(scratch) / "pages"
        sources.mkdir()
        write_sources(folders, sources)
        if build_main(["-q", "-b", "html", "-c", str(HOME / "docs"), str(sources), str(pages)]):
            raise ValueError("Sphinx failed; its messages stand above")
        for folder in folders:
            shutil.copy(folder / "report.html", pages / f"{folder.name}.report.html")
        shutil.rmtree(pages / ".doctrees", ignore_errors=True)
        shutil.rmtree(to, ignore_errors=True)
        shutil.move(pages, to)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError("name one parameter file: python docs/book.py params/pocket.yaml")
    folders = studies_of(Path(arguments[0]))
    to = folders[0].parent / "book"
    build(folders, to)
    print(f"{to / 'index.html'}: open it in a browser, no server needed")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"book: {' '.join(str(error).split())}")
