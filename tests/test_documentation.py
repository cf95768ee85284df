"""What README and docs say is so: examples run, commands parse, links and named tests exist."""

import ast
import contextlib
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from pages import PAGES, ROOT, Fence, fences

import swav_kernels as sk
from swav_kernels import compat, dispatch

BLOCKS = fences("python")
DIFFS = {
    page: "".join(fence.text for fence in fences("diff") if fence.page == page)
    for page in sorted({fence.page for fence in fences("diff")})
}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "swav_kernels").rglob("*.py"))
    if ">>>" in path.read_text()
]
OF_TORCHRUN = {"--nproc-per-node", "--max-restarts"}
SHARED = ("stabilised_sinkhorn",)  # by drop-ins, no function of a code base
FUNCTIONS = {
    **{f"swav_kernels.{name}": getattr(sk, name) for name in sk.__all__},
    **{
        f"swav_kernels.compat.{module}.{name}": value
        for module in compat.__all__
        for name, value in vars(getattr(compat, module)).items()
        if not name.startswith("_")
        and name not in SHARED
        and getattr(value, "__module__", "") == f"swav_kernels.compat.{module}"
    },
}
del FUNCTIONS["swav_kernels.__version__"], FUNCTIONS["swav_kernels.compat"]
OPS = [
    name for name in sk.__all__
    if inspect.isfunction(getattr(sk, name)) and ".ops." in getattr(sk, name).__module__
]  # fmt: skip


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    sk.unpatch()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
@pytest.mark.usefixtures("in_an_empty_folder")
def test_an_example_runs(block: Fence) -> None:
    code = compile(block.text, f"{block.page}, after line {block.line}", "exec")
    exec(code, {"__name__": "example"})


def test_there_are_examples_on_the_pages_that_need_them() -> None:
    with_examples = {block.page for block in BLOCKS}
    wanted = {"README.md", "docs/index.md", "docs/start.md", "docs/mathematics.md"}
    assert wanted <= with_examples
    for name in compat.__all__:
        assert {f"docs/migration/{name}.md"} & (with_examples | DIFFS.keys()), name


@pytest.mark.parametrize("page", DIFFS)
def test_what_a_diff_adds_can_be_called(page: str) -> None:
    """Names are imported for true, and calls have arguments that the function takes."""
    added = "\n".join(line[1:] for line in DIFFS[page].splitlines() if line.startswith("+"))
    tree, namespace = ast.parse(added), {}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([statement], []), page, "exec"), namespace)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(namespace[call.func.id]).bind(*call.args, **keywords)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__name__ == module
    results = doctest.testmod(found)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_are_complete(name: str) -> None:
    docstring = inspect.getdoc(FUNCTIONS[name])
    parts = re.split(r"^(Args|Returns|Raises|Example|Source):", docstring, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if name.endswith("_in_subgroup"):  # says that it is another one over a subgroup
        return
    assert "Example" in sections, f"{name} has no example"
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        assert re.search(rf"^    \**{argument}: ", sections.get("Args", ""), re.MULTILINE), (
            f"{name}: Args does not tell of {argument}"
        )
    if name.removeprefix("swav_kernels.") in OPS:
        assert sections.keys() == {"Args", "Returns", "Raises", "Example", "Source"}


def test_every_op_has_a_page_that_tells_how_it_is_held() -> None:
    assert set(dispatch.OPS) <= set(OPS)
    for name in OPS:
        page = ROOT / "docs" / "ops" / f"{name}.md"
        assert page.is_file(), f"docs/ops/{name}.md is missing"
        text = page.read_text()
        for part in ("$$", f".. autofunction:: swav_kernels.{name}", "## Held by"):
            assert part in text, f"{page.name}: no {part}"
        assert pages.NODE.search(text), f"{name}: no test is named"
        assert f"[`{name}`]({name}.md)" in (page.parent / "index.md").read_text()


def test_every_drop_in_has_a_page() -> None:
    for name in compat.__all__:
        text = (ROOT / "docs" / "migration" / f"{name}.md").read_text()
        for function in FUNCTIONS:
            if function.startswith(f"swav_kernels.compat.{name}."):
                assert re.search(rf":: {re.escape(function)}$", text, re.MULTILINE), function


def test_tests_that_pages_name_exist() -> None:
    count = 0
    for page in PAGES:
        for file, test in pages.NODE.findall(page.read_text()):
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (
                f"{page.name} names {file}::{test}"
            )
            count += 1
    assert count > 50


def test_commands_have_the_options_that_pages_show() -> None:
    count = 0
    for page, command, rest in pages.commands():
        for flag in set(pages.FLAG.findall(rest)) - OF_TORCHRUN:
            assert re.search(rf"{flag}(?![\w-])", pages.help_of(command)), (
                f"{page.name}: {command} has no {flag}"
            )
            count += 1
    assert count > 20


def test_options_that_pages_name_alone_belong_to_a_command() -> None:
    known = "".join(pages.help_of(command) for _, command, _ in pages.commands())
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for code in pages.inline_code(page):
            for flag in [code.split()[0]] if code.startswith("--") else []:
                flag = flag.partition("=")[0]
                assert flag in OF_TORCHRUN or re.search(rf"{flag}(?![\w-])", known), (
                    f"{page.name}: {flag}"
                )


def test_links_and_files_that_pages_name_exist() -> None:
    folders = r"(?:benchmarks|csrc|docs|examples|python|swav_kernels|tests|tools)"
    for page in PAGES:
        for target in pages.LINK.findall(pages.FENCE.sub("", page.read_text())):
            place = target.partition("#")[0]
            if place and not re.match(r"https?:", target):
                assert (page.parent / place).exists(), f"{page.name} links to {target}"
        for code in pages.inline_code(page):
            if re.fullmatch(rf"{folders}/[\w./-]+\.\w+", code):
                assert (ROOT / code).exists(), f"{page.name} names {code}"


def test_names_that_pages_show_exist() -> None:
    for page in PAGES:
        for code in pages.inline_code(page):
            for path in re.findall(r"(?<![\w.])(?:sk|swav_kernels)\.([A-Za-z_][\w.]*\w)", code):
                value = sk
                for part in path.split("."):
                    with contextlib.suppress(ImportError):
                        importlib.import_module(f"swav_kernels.{part}")
                    assert hasattr(value, part), f"{page.name}: {code}"
                    value = getattr(value, part)
