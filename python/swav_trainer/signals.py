"""Ctrl-C and SIGTERM: a wish to stop after the step at hand."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether the run is asked to stop, and by what."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._signal = 0

    def ask(self) -> None:
        """Ask for it."""
        self._asked.set()

    @property
    def is_asked(self) -> bool:
        """True from then on."""
        return self._asked.is_set()

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped: 130 if by Ctrl-C, else 0, as schedulers expect.

        One that stops because another of its processes was asked to has got no signal.
        """
        return 130 if self._signal == signal.SIGINT else 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM for it; a second Ctrl-C interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _: object) -> None:
            if number == signal.SIGINT and self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = self._signal or number
            self.ask()

        signals = (signal.SIGINT, signal.SIGTERM)
        before: list[Any] = [signal.signal(number, stop) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)
