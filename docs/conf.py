"""Sphinx's settings for `make book`: executed notebooks are shown as they are, and nothing comes from the network."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

project = "w2s"
extensions = ["myst_nb"]
html_theme = "furo"
html_title = "w2s"
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_show_search_summary = False  # it reads pages with fetch(), which a browser refuses for file://
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "All parameters of this run"  # only those are folded, see book.py
nb_code_prompt_hide = nb_code_prompt_show
nb_ipywidgets_js = {}  # else from a CDN, on pages that have a widget
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# A notebook may skip a level of headings; an output may have a form that a page does not show.
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]


def visit_math(page, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw by themselves: MathJax would come from a CDN."""
    inline = isinstance(node, nodes.math)
    try:
        formula = convert(node.astext(), display="inline" if inline else "block")
        page.body.append(formula if inline else f'<div class="formula">{formula}</div>')
    except Exception as error:  # of many kinds, for LaTeX that the converter lacks: the page shows its source
        logging.getLogger(__name__).warning("%s: %r", node.astext(), error, location=node)
        page.body.append(f"<code>{page.encode(node.astext())}</code>")
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
