"""What SECURITY.md promises of the code that is installed, read from its syntax."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    [*(ROOT / "swav_kernels").rglob("*.py"), *(ROOT / "python").rglob("*.py"), ROOT / "hubconf.py"]
)
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp",
    "pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "marshal.loads", "marshal.load",
    "shelve.open",
}  # fmt: skip
OF_NETWORKS = {"urllib", "http", "socket", "ssl", "requests", "httpx", "ftplib", "smtplib"}
DOWNLOAD = "python/swav_trainer/download.py"
UNPICKLER = "python/swav_trainer/shard_index.py"


def named(node: ast.expr) -> str:
    """Name or dotted name of what is called."""
    try:
        return ast.unparse(node)
    except ValueError:
        return ""


def faults(tree: ast.AST, path: str) -> Iterator[str]:
    """Lines that break a promise."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, options = named(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in NEVER:
                yield f"{node.lineno}: {name}"
            if options.get("shell", "False") != "False":
                yield f"{node.lineno}: a shell"
            if name == "torch.load" and options.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only"
            if options.get("allow_pickle", "False") != "False":
                yield f"{node.lineno}: allow_pickle"
        is_unpickler = isinstance(node, ast.Attribute) and named(node) == "pickle.Unpickler"
        if is_unpickler and path != UNPICKLER:
            yield f"{node.lineno}: an unpickler"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                network = module.partition(".")[0] in OF_NETWORKS and module != "urllib.parse"
                if network and path != DOWNLOAD:
                    yield f"{node.lineno}: {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_breaks_a_promise(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not list(faults(tree, str(path.relative_to(ROOT))))


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec('x = 1')", "__import__('os')", "os.system('ls')",
        "subprocess.run('ls', shell=True)", "torch.load(file)",
        "torch.load(file, weights_only=False)", "pickle.loads(data)",
        "class A(pickle.Unpickler): pass", "import urllib.request", "from http import client",
        "import socket", "np.load(file, allow_pickle=True)", "tempfile.mktemp()",
    ],
)  # fmt: skip
def test_a_broken_promise_would_be_seen(code: str) -> None:
    assert list(faults(ast.parse(code), "x.py"))


def test_what_is_kept_is_not_taken_for_broken() -> None:
    for code in ("from urllib.parse import urlsplit", "torch.load(f, weights_only=True)",
                 "model.eval()", "backbone.compile()"):  # fmt: skip
        assert not list(faults(ast.parse(code), "x.py"))


def test_the_table_has_the_tested_versions_of_all_dependencies() -> None:
    table = dict(
        re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    )
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    assert table
    for name, version in table.items():
        assert pins[name] == version, name
    text = (ROOT / "pyproject.toml").read_text()
    direct = re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE)[1]
    for extra in ("train", "onnx", "parquet"):
        direct += "," + re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)[1]
    for name in re.findall(r'"([\w-]+)>=', direct):
        assert name in table or name == "tomli", name


def test_every_test_that_holds_a_promise_is_there() -> None:
    for name in re.findall(r"test_\w+\.py", (ROOT / "SECURITY.md").read_text()):
        assert (ROOT / "tests" / name).is_file(), name
