"""Python files of a folder, parsed; what cannot be read is noted and passed over."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from swav_trainer.errors import TrainerError, printable

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages"}


class Module(NamedTuple):
    """A parsed file: what it offers to others, its own name included, and what it imports."""

    path: str
    tree: ast.Module
    offered: frozenset[str]
    imported: frozenset[str]

    def is_related(self, other: "Module") -> bool:
        """Whether one of the two imports the other, or something that it defines."""
        return bool(self.imported & other.offered or other.imported & self.offered)


def read_tree(root: str) -> tuple[list[Module], list[str]]:
    """Return the modules under a path in order, and a note for each file passed over.

    Raises:
        TrainerError: there is no such path, or it is neither a folder nor a file.
    """
    path = Path(root)
    if not path.exists():
        raise TrainerError(f"lint: no such file or folder: {printable(root)}")
    notes: list[str] = []
    if path.is_dir():
        files = list(_python_files(path, set(), notes))
    elif path.is_file():
        files = [path]
    else:
        raise TrainerError(f"lint: neither a folder nor a file: {printable(root)}")
    modules = [module for file in files if (module := _parse(file, notes)) is not None]
    return modules, notes


def _python_files(folder: Path, seen: set[tuple[int, int]], notes: list[str]) -> Iterator[Path]:
    """Files of a folder and its folders, links followed; each folder once."""
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        notes.append(f"passed over {printable(folder)}: {error.strerror}")
        return
    if (status.st_dev, status.st_ino) in seen:
        notes.append(f"passed over {printable(folder)}: a link to a folder that was read already")
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:
            is_folder = is_file = False
        if is_folder:
            if entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("."):
                yield from _python_files(entry, seen, notes)
        elif entry.suffix == ".py":
            if is_file:
                yield entry
            else:
                notes.append(f"passed over {printable(entry)}: not a file, or a link to nothing")


def _parse(file: Path, notes: list[str]) -> Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the code that is read
            tree = ast.parse(file.read_bytes())
    except OSError as error:
        notes.append(f"passed over {printable(file)}: {error.strerror}")
        return None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        notes.append(f"passed over {printable(file)}: not Python 3{line}: {reason}")
        return None
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    offered = {node.name for node in tree.body if isinstance(node, definitions)}
    # a package's name is that of its folder
    name = file.absolute().parent.name if file.stem == "__init__" else file.stem
    return Module(printable(file), tree, frozenset({*offered, name}), frozenset(_imported(tree)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.name.rpartition(".")[2]
            if isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.rpartition(".")[2]
