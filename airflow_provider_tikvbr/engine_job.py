"""Runs one job of the engine for a host that is not asynchronous, such as a task of Airflow.

The job gets an event loop in a thread of its own. The thread of the caller waits, and is the only one that logs and
talks to Airflow. That keeps two things right: a signal handler or an exception that a signal raises (a task's execution
timeout is one) hits the waiting thread and never the middle of the engine, and a slow reporter never holds up the job.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from airflow_provider_tikvbr.exceptions import JobCancelledError
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Event, Listener, Note, Progress
from airflow_provider_tikvbr.rawbr.tasks import Threads

T = TypeVar("T")

# How long a cancelled job may take to put the cluster back as it was before the caller stops waiting for it.
GRACE_S = 30.0

# The longest single wait. A signal that comes right before a wait does not end it, and its handler has to wait too.
SIGNAL_S = 1.0


class EngineJob(Generic[T]):
    """One run of a coroutine function, which is given the listener for its events.

    :param work: what to run; it has to end soon when it is cancelled, and leaves nothing behind then.
    :param name: names the thread.
    """

    def __init__(self, work: Callable[[Listener], Coroutine[Any, Any, T]], *, name: str = "tikvbr-job") -> None:
        self._work = work
        self._name = name
        # SimpleQueue, because its get() may be interrupted by a signal handler without harm.
        self._news: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._latest: Progress | None = None
        self._latest_at = 0.0
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        # A plain attribute and not an Event: a signal handler must not take a lock that its own thread may hold.
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the job to stop."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the job to stop, and return at once; any thread and any signal handler may call it, also twice."""
        if self._cancelled:
            # A second cancellation would break into the cleaning up that the first one started.
            return
        self._cancelled = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed: the job has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)

    def run(
        self,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_note: Callable[[Note], None] | None = None,
        on_checkpoint: Callable[[CheckpointSaved], None] | None = None,
        interval_s: float = 10.0,
    ) -> T:
        """Run the job to its end.

        :param on_progress: called in this thread every ``interval_s`` seconds with the latest state, and with the last
            one of each step.
        :param on_note: called in this thread with each note.
        :param on_checkpoint: called in this thread whenever the job has saved its state.
        :param interval_s: the cadence, in seconds.
        :raises JobCancelledError: the job was asked to stop, and did.
        """
        # What the caller's context says, such as whether keys are shown, holds for the job too.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._main,), name=self._name, daemon=True)
        try:
            # In here, for the signal may come while the thread starts.
            thread.start()
            self._watch(on_progress or _drop, on_note or _drop, on_checkpoint or _drop, interval_s)
        except BaseException:
            self.cancel()
            self._wait(on_note or _drop)
            raise
        thread.join()
        if isinstance(self._error, asyncio.CancelledError):
            raise JobCancelledError("the job was asked to stop, and has put the cluster back as it was") from None
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def _watch(
        self,
        on_progress: Callable[[Progress], None],
        on_note: Callable[[Note], None],
        on_checkpoint: Callable[[CheckpointSaved], None],
        interval_s: float,
    ) -> None:
        reported: Progress | None = None
        beat = time.monotonic() + interval_s
        while True:
            try:
                news = self._news.get(timeout=max(0.0, min(beat - time.monotonic(), SIGNAL_S)))
            except queue.Empty:
                if time.monotonic() < beat:
                    continue
                beat = time.monotonic() + interval_s
                # A cancelled task has no business with its supervisor any more.
                if self._latest is not None and not self._cancelled:
                    reported = self._latest
                    on_progress(_now(reported, self._latest_at))
                continue
            if news is None:
                break
            if isinstance(news, Note):
                on_note(news)
            elif isinstance(news, CheckpointSaved):
                if not self._cancelled:
                    on_checkpoint(news)
            elif news is not reported and not self._cancelled:
                on_progress(news)
        if self._latest is not None and self._latest is not reported and not self._cancelled:
            on_progress(self._latest)

    def _wait(self, on_note: Callable[[Note], None]) -> None:
        """Let an interrupted job clean up, and tell what that has to say, such as what could not be put back."""
        deadline = time.monotonic() + GRACE_S
        while True:
            try:
                news = self._news.get(timeout=max(0.0, min(deadline - time.monotonic(), SIGNAL_S)))
            except queue.Empty:
                if time.monotonic() < deadline:
                    continue
                on_note(Note(level="warning", message=f"the job has not put the cluster back within {GRACE_S:g} s"))
                return
            if news is None:
                return
            if isinstance(news, Note):
                on_note(news)

    def _listen(self, event: Event) -> None:
        if isinstance(event, Progress):
            if self._latest is not None and event.step != self._latest.step:
                self._news.put(self._latest)
            self._latest, self._latest_at = event, time.monotonic()
        else:
            self._news.put(event)

    def _main(self) -> None:
        try:
            self._outcome.append(asyncio.run(self._supervised()))
        except BaseException as err:
            self._error = err
        finally:
            self._news.put(None)

    async def _supervised(self) -> T:
        threads = Threads()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(threads)
        self._loop, self._task = loop, asyncio.current_task()
        if self._cancelled:
            raise asyncio.CancelledError
        try:
            return await self._work(self._listen)
        except BaseException:
            threads.stopped = True
            raise


def _now(progress: Progress, at: float) -> Progress:
    """The state of a step, as old as it is now: while a job stands still, its time goes on."""
    return replace(progress, elapsed_s=progress.elapsed_s + time.monotonic() - at)


def _drop(event: Event) -> None:
    """Take no notice."""
