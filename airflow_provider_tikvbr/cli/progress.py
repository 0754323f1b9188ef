"""What a person sees while a job runs: a bar on a terminal, lines in a log everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from airflow_provider_tikvbr.logfile import LOGGER
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Event, Note, Progress
from airflow_provider_tikvbr.rawbr.humanize import human_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Seconds between two lines of progress in a log.
CADENCE_S = 30.0
# The bar takes the width of the terminal, as tikv-br's does, but for what is said behind it, and has at least so many signs: a
# narrow terminal tells less behind it.
SAID_WIDTH = len("100.00% 108.7MB/s 1h02m03s left")
MIN_WIDTH = 10
SPINNER = "-\\|/"


def bar(fraction: float, tick: int, width: int) -> str:
    r"""Draw a bar as tikv-br's: ``<-----/......>``; the sign at the front of the dashes turns with the tick."""
    full = int(fraction * width)
    if full >= width:
        return f"<{'-' * width}>"
    return f"<{'-' * full}{SPINNER[tick % len(SPINNER)]}{'.' * (width - full - 1)}>"


def clock(seconds: float | None) -> str:
    """Write a time that is left, to the second."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}h{minute:02d}m{second:02d}s" if hours else f"{minute}m{second:02d}s" if minute else f"{second}s"


class LogProgress:
    """Writes progress to the log: at a steady cadence, and once when a step is complete.

    :param cadence_s: seconds between two lines of one step.
    :param now: a clock that never goes back, in seconds.
    """

    def __init__(self, *, cadence_s: float = CADENCE_S, now: Callable[[], float] = time.monotonic) -> None:
        self._cadence_s = cadence_s
        self._now = now
        self._step = ""
        self._last = 0.0
        self._complete = False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Note):
            (LOGGER.warning if event.level == "warning" else LOGGER.info)(event.message)
            return
        if isinstance(event, CheckpointSaved):
            LOGGER.info("checkpoint saved", extra={"fields": {"place": event.place, "pieces": event.pieces}})
            return
        if event.step != self._step:
            self._step, self._last, self._complete = event.step, self._now(), False
        complete = event.fraction >= 1 and not self._complete
        if not complete and self._now() - self._last < self._cadence_s:
            return
        self._last = self._now()
        self._complete |= complete
        LOGGER.info(
            "progress",
            extra={
                "fields": {
                    "step": event.step,
                    "progress": f"{event.fraction:.2%}",
                    "count": f"{event.done} / {event.total}",
                    "speed": f"{human_size(event.speed)}/s",
                    "elapsed": clock(event.elapsed_s),
                    "remaining": clock(event.remaining_s),
                }
            },
        )


class BarProgress:
    """Draws a bar for each step on a terminal, and writes warnings above it.

    :param console: where to draw; standard error if nothing is given.
    """

    def __init__(self, *, console: Console | None = None) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._console = console or RichConsole(stderr=True)
        self._latest: Progress | None = None
        self._at = 0.0
        self._tick = 0
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> BarProgress:
        """Return itself; drawing begins with the first progress."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Note):
            if event.level == "warning":
                self._console.print(f"Warning: {event.message}", markup=False, highlight=False, style="yellow")
            return
        if isinstance(event, CheckpointSaved):
            return
        if self._latest is not None and event.step != self._latest.step:
            # the bar of a step that is over stays above the next one's
            self._console.print(self._text(self._latest))
        self._latest, self._at = event, time.monotonic()
        if not self._live.is_started:
            self._live.start()

    def _render(self) -> Text:
        from rich.text import Text

        self._tick += 1
        return self._text(self._latest) if self._latest else Text()

    def _text(self, event: Progress) -> Text:
        from rich.text import Text

        title = event.step.title()
        said = [f"{event.fraction:.2%}", f"{human_size(event.speed)}/s"]
        if event.fraction < 1 and (left := event.remaining_s) is not None:
            # events come when something is done: between them the clock goes on
            said.append(f"{clock(max(0.0, left - (time.monotonic() - self._at)))} left")
        free = self._console.width - len(f"{title} <> ")
        while len(said) > 1 and free - len(" ".join(said)) < MIN_WIDTH:
            said.pop()
        # What is said keeps its place while it grows and shrinks, so that the bar does not jump.
        width = max(MIN_WIDTH, min(free - SAID_WIDTH, free - len(" ".join(said))))
        text = Text(no_wrap=True, overflow="crop")
        text.append(title, style="green")
        text.append(f" {bar(event.fraction, self._tick, width)} {' '.join(said)}")
        return text
