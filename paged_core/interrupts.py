"""Control-C (in a notebook: the stop button) at a moment when it breaks nothing."""

from __future__ import annotations

import signal
import threading


class Interrupts:
    """Within it an interrupt waits while `held`, and comes at its end at the latest.

        with Interrupts() as interrupts:
            ...                      # books are kept: all or nothing
            interrupts.let_through()
            ...                      # long work, that whoever waits may break off
            interrupts.held = True

    Outside Python's main thread, and where the signal is not Python's to handle, it does nothing. It is no
    `contextlib.contextmanager`: an interrupt would find gaps in that one's own lines.
    """

    def __init__(self) -> None:
        self.held, self._came = True, False
        handler = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._theirs = handler if callable(handler) and in_main_thread else None

    def __enter__(self) -> Interrupts:
        if self._theirs:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._theirs:
            signal.signal(signal.SIGINT, self._theirs)
        self.let_through()

    def let_through(self) -> None:
        """KeyboardInterrupt (or what the handler before this one does) if one has come; from now on, at once."""
        self.held = False
        if self._came and self._theirs:
            self._came = False
            self._theirs(signal.SIGINT, None)

    def _on_signal(self, *_: object) -> None:
        self._came = True
        if not self.held:
            self.let_through()
