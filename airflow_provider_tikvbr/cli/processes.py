"""Child processes of the demo: each writes to a log file of its own, and none outlives it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
POLL_S = 0.1
STOP_S = 10.0


class ProcessError(Exception):
    """A child process failed, or did not do in time what it was started for.

    :param message: one sentence.
    :param log: where it wrote.
    """

    def __init__(self, message: str, *, log: Path) -> None:
        super().__init__(message)
        self.log = log


@contextlib.contextmanager
def _signals_later() -> Iterator[list[int]]:
    """Collect the signals that would interrupt this process, so that none strikes between a child's start and its end.

    :return: the signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda sign, _frame: came.append(sign)) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Process:
    """One child process, in a session of its own, so that ctrl-C in the terminal reaches this process only.

    :param name: what it is called in messages.
    :param command: the program and its arguments.
    :param log: the file that takes its output; it is begun anew.
    :param env: its environment; None for this process's.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out, _signals_later() as came:
            self._child = subprocess.Popen(  # noqa: S603 - the demo's own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        self._reader = log.open("rb")
        self._rest = b""
        if came:
            # Nobody else knows of the child yet.
            self.stop()
            signal.raise_signal(came[0])

    def __enter__(self) -> Process:
        """Nothing to do: it runs."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def wait_for(self, pattern: str, *, timeout_s: float) -> re.Match[str]:
        """Wait for a line.

        :return: what the pattern found.
        :raises ProcessError: it ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            code = self._child.poll()
            for line in self.lines():
                if found := re.search(pattern, line):
                    return found
            if code is not None:
                raise ProcessError(f"{self.name} ended with exit code {code} before it was ready.", log=self.log)
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready after {timeout_s:.0f} s.", log=self.log)
            time.sleep(POLL_S)

    def wait(self, *, timeout_s: float, on_line: Callable[[str], None] | None = None) -> None:
        """Wait for its end.

        :param on_line: called with each line as it comes.
        :raises ProcessError: it failed, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            code = self._child.poll()
            for line in self.lines():
                if on_line is not None:
                    on_line(line)
            if code == 0:
                return
            if code is not None:
                raise ProcessError(f"{self.name} failed with exit code {code}.", log=self.log)
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} did not end within {timeout_s:.0f} s.", log=self.log)
            time.sleep(POLL_S)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self._child.send_signal(number)

    def lines(self) -> list[str]:
        """The whole lines that have come since the last call, without colours."""
        *whole, self._rest = (self._rest + self._reader.read()).split(b"\n")
        return [_COLOUR.sub("", line.decode(errors="replace")) for line in whole]

    def stop(self) -> None:
        """Stop it and whatever it started, politely first."""
        self._reader.close()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def tail(log: Path, lines: int = 20) -> list[str]:
    """The last lines of a log, without colours."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return [_COLOUR.sub("", line) for line in text.splitlines()[-lines:]]
