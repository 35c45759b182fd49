"""Ctrl-C, SIGTERM and SIGHUP at any moment, none lost.

Python raises ``KeyboardInterrupt`` wherever it happens to be. Inside a callback from a C library (tpm2-tss calls ours)
it is swallowed and shows as the library's error, or not at all; so the signal is also remembered, and asked for.
"""

import signal
from typing import Final, NoReturn

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Whether somebody wants the program to end."""

    def __init__(self) -> None:
        """Begin to listen to the signals."""
        self.happened = False
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def check(self) -> None:
        """Between two steps: end now if a signal came.

        Raises:
            KeyboardInterrupt: One did.
        """
        if self.happened:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Hear no signal any more: what is left is cleaning up."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, _number: int, _frame: object) -> NoReturn:
        self.happened = True
        raise KeyboardInterrupt
