"""Children of a test that a fault meets at a chosen call, as a kill or a failing disk would."""

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.multiprocessing as mp
from depth import count

DEADLINE = count(240, 3600)  # seconds for children: the machine may be busy
CUT = -signal.SIGXFSZ  # how a child ends that `cut` has met


@dataclass(frozen=True)
class Point:
    """The `hit`-th call of a function, named module:object.name; what happens there, and when."""

    place: str
    hit: int
    behind: bool = False
    cut: int | None = None  # bytes of a file after which the process dies; None kills it at once

    def __str__(self) -> str:
        """The name of the test."""
        when = "behind" if self.behind else "before"
        end = "" if self.cut is None else f"-at-byte-{self.cut}"
        return f"{when}-{self.hit}-{self.place.partition(':')[2]}{end}"


def die() -> NoReturn:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


def cut(size: int) -> None:
    """Die in the middle of the next write that would make a file longer than that."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def at(place: str, hit: int, act: Callable[[], None], behind: bool = False) -> None:
    """Let `act` run at a call of a function, from now on in this process."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def patched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        meets = calls == hit
        if meets and not behind:
            act()
        result = real(*arguments, **options)
        if meets and behind:
            act()
        return result

    setattr(owner, last, patched)


def meet(point: Point) -> None:
    """Let this process die at that point."""
    size = point.cut
    at(point.place, point.hit, die if size is None else lambda: cut(size), point.behind)


def child(function: Callable[..., Any], *arguments: Any) -> int:
    """Call the function in a copy of this process; its exit code, or -signal."""
    return children([arguments], function)[0]


def children(arguments: Sequence[tuple[Any, ...]], function: Callable[..., Any]) -> list[int]:
    """Call the function in copies of this process, at once; their exit codes, or -signals."""
    torch.set_num_threads(1)  # a copy of a process with a thread pool may hang
    context = mp.get_context("fork")
    every = [context.Process(target=_begin, args=(function, each)) for each in arguments]
    for process in every:
        process.start()
    deadline = time.monotonic() + DEADLINE
    for process in every:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [number for number, process in enumerate(every) if process.is_alive()]
    for process in every:
        process.kill()
        process.join()
    assert not late, f"children {late} did not end within {DEADLINE} s"
    return [process.exitcode for process in every]


@contextlib.contextmanager
def heard(file: Path) -> Iterator[None]:
    """Write what this process, a child, says into a file."""
    with file.open("w") as opened:
        for stream in (1, 2):
            os.dup2(opened.fileno(), stream)
        sys.stdout = sys.stderr = opened
        yield


def _begin(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    server = forkserver._forkserver  # the parent's, if it has one, is no child of this process
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    function(*arguments)
