"""Links of files that pages include: they are written from where the file is, the root."""

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

PAGES = {"benchmarks/results/accuracy.md": "accuracy"}


def _to_pages(app: Any, document: nodes.document) -> None:
    for node in document.findall(pending_xref):
        target = node.get("reftarget", "")
        page = PAGES.get(target) or target.removeprefix("docs/").removesuffix(".md")
        if node.get("reftype") == "myst" and (target in PAGES or target.startswith("docs/")):
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, None


def setup(app: Any) -> dict[str, bool]:
    """Before references are resolved."""
    app.connect("doctree-read", _to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
