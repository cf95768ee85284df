"""Children of a test that a fault meets at a chosen call, as a kill or a failing disk would."""

import importlib
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, NoReturn

import torch
import torch.multiprocessing as mp

DEADLINE = 240  # seconds for a child: the machine may be busy
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
    torch.set_num_threads(1)  # a copy of a process with a thread pool may hang
    process = mp.get_context("fork").Process(target=_begin, args=(function, arguments))
    process.start()
    process.join(DEADLINE)
    late = process.is_alive()
    process.kill()
    process.join()
    assert not late, f"the child did not end within {DEADLINE} s"
    return process.exitcode


def _begin(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    server = forkserver._forkserver  # the parent's, if it has one, is no child of this process
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    function(*arguments)
