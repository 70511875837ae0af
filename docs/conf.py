"""Sphinx's configuration: ``sphinx-build -W docs build/docs``."""

import sys
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
# The checkout, whatever is installed.
sys.path.insert(0, str(ROOT))

import egcnn  # noqa: E402

project = "egcnn"
author = "the egcnn authors"
version = release = egcnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub shows it
myst_heading_anchors = 3

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"egcnn {version}"
html_math_renderer = "mathml"


def setup(app):
    """Write formulas as MathML, which browsers draw: MathJax would be loaded from elsewhere."""

    def inline(translator, node):
        translator.body.append(tex2mathml(node.astext()))
        raise SkipNode

    def block(translator, node):
        formula = tex2mathml(node.astext(), as_block=True)
        # Room below, or furo's scrolling box takes low letters for an overflow.
        translator.body.append(f'<div class="math" style="padding: 0.4em">{formula}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
