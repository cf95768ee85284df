"""The pages of the documentation: `sphinx-build -W docs build/docs`. Needs no network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import swav_kernels

project = "swav_kernels"
author = "the authors of swav_kernels"
version = release = swav_kernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "results",
    "included",
    "mathml",
    "plain_docstrings",
]
exclude_patterns = ["extensions"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["swav.css"]
html_title = f"swav_kernels {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = [
    "Returns"
]  # text, where napoleon takes what is before a colon for a type
default_role = "code"  # a docstring's `name` is code
nitpicky = True
# types of torch and of Python: their pages are not here
nitpick_ignore_regex = [(r"py:.*", r"(?!swav_kernels).*")]
