"""The documentation builds without a warning or a network, and its links lead somewhere."""

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import PAGES, ROOT

import swav_kernels as sk

LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a built page loads, where it links to, and what can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags[tag] += 1
        self.anchors.add(given.get("id", ""))
        if LOADS.get(tag) in given:
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the built site, by its file."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going",
         "-d", str(folder / "kept"), str(ROOT / "docs"), str(folder / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return {path: Page(path) for path in sorted((folder / "html").rglob("*.html"))}


def test_every_page_and_every_public_name_is_there(site: dict[Path, Page]) -> None:
    (index,) = (path for path in site if path.name == "index.html" and path.parent.name == "html")
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs"):
            place = page.relative_to(ROOT / "docs").with_suffix(".html")
            assert index.parent / place in site, place
    anchors = set().union(*(page.anchors for page in site.values()))
    for name in set(sk.__all__) - {"__version__", "compat"}:
        assert f"swav_kernels.{name}" in anchors, f"{name} is on no page"
    results = list((ROOT / "benchmarks" / "results").glob("*.json"))
    for result in results:
        assert index.parent / "results" / result.stem / "benchmarks.html" in site
    assert results


def test_nothing_is_loaded_from_a_network(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        for place in page.loads:
            assert not re.match(r"(https?:)?//", place), f"{path.name} loads {place}"
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text()), path.name
    (root,) = {path.parent for path in site if path.parent.name == "html"}
    for style in root.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text()), style.name


def test_links_lead_somewhere(site: dict[Path, Page]) -> None:
    count = 0
    for path, page in site.items():
        for link in page.links + page.loads:
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = unquote(link).partition("#")
            target = (path.parent / place.partition("?")[0]).resolve() if place else path
            assert target.exists(), f"{path.name} links to {link}"
            if anchor and target in site and target.name not in ("search.html", "genindex.html"):
                assert anchor in site[target].anchors, f"{path.name} links to {link}"
            count += 1
    assert count > 500


def test_formulas_are_drawn_by_the_browser_itself(site: dict[Path, Page]) -> None:
    docs = ROOT / "docs"
    written = {
        page.relative_to(docs).with_suffix("").as_posix(): len(
            re.findall(r"\$\$.+?\$\$|\$[^$]+\$", page.read_text(), re.DOTALL)
        )
        for page in PAGES
        if page.is_relative_to(docs)
    }
    for name, count in written.items():
        (page,) = (site[path] for path in site if path.as_posix().endswith(f"/html/{name}.html"))
        assert page.tags["math"] == count, name
    assert written["mathematics"] > 40
    for path in site:  # what the converter does not know, it leaves as it is
        for formula in re.findall(r"<math.*?</math>", path.read_text(), re.DOTALL):
            assert "\\" not in formula, f"{path.name}: {formula}"
