"""The site of `make book`: all pages are there, nothing comes from the network, search finds a word of an output."""

import re
import runpy
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from w2s.params import HOME

PAGES = ("index", "search", "tiny/report", "tiny/00_start_here", "tiny/01_data", "README", "docs/performance")
REPORT = '<title>the report</title><img src="data:,">'
LOADED = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']([^\"']*)|<link\b[^>]*\bhref=[\"']([^\"']*)"


@pytest.fixture
def study(tmp_path):
    """A parameter file and what its study left: one executed notebook with a formula, a table and a text, a report."""
    folder = tmp_path / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(REPORT, encoding="utf-8")
    table = new_output("execute_result", {"text/html": "<table><tr><td>cell</td></tr></table>", "text/plain": "cell"})
    outputs = [new_output("stream", text="zorbex seen\n"), table]
    texts = ["# Data\n\nA $\\tilde y$ and\n\n$$P = \\sigma(z)$$", "Not a formula: $x^1^2$"]
    cells = [new_markdown_cell(texts[0]), new_code_cell("1 + 1", outputs=outputs), new_markdown_cell(texts[1])]
    nbformat.write(new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / "01_data.ipynb")
    params = tmp_path / "tiny.yaml"
    params.write_text(f"study: tiny\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    return params


def book(*arguments):
    return subprocess.run([sys.executable, HOME / "docs" / "book.py", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(study):
    for _ in range(2):  # the second takes the place of the first
        done = book(study)
        assert done.returncode == 0 and "x^1^2" in done.stderr, done.stderr
    site = study.parent / "out" / "book"
    assert [name for name in PAGES if not (site / f"{name}.html").is_file()] == []
    assert (site / "tiny.report.html").read_text(encoding="utf-8") == REPORT
    assert 'src="../tiny.report.html"' in (site / "tiny" / "report.html").read_text(encoding="utf-8")
    page = (site / "tiny" / "01_data.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2 and "<code>x^1^2</code>" in page and "<td>cell</td>" in page
    assert "zorbex" in (site / "searchindex.js").read_text(encoding="utf-8")
    for path in site.rglob("*.html"):
        loaded = ["".join(found) for found in re.findall(LOADED, path.read_text(encoding="utf-8"))]
        assert loaded and not [url for url in loaded if re.match("(https?:)?//", url)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_what_cannot_be_built_is_said_in_one_line(study):
    main = runpy.run_path(str(HOME / "docs" / "book.py"))["main"]
    (study.parent / "out" / "book").mkdir()
    with pytest.raises(ValueError, match="a folder that is not a book stands there"):
        main([str(study)])
    (study.parent / "out" / "tiny" / "report.html").unlink()
    with pytest.raises(ValueError, match=f"run make study STUDY={study} first"):
        main([str(study)])
    done = book()
    assert done.returncode == 1 and "name one parameter file" in done.stderr and done.stderr.count("\n") == 1
