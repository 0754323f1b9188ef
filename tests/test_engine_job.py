from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_tikvbr import engine_job
from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError
from airflow_provider_tikvbr.rawbr.events import Listener, Note, Progress


def progress(step: str, done: int) -> Progress:
    return Progress(step=step, done=done, total=10, kvs=done, bytes=done, elapsed_s=1.0)


async def forever(listener: Listener) -> None:
    await asyncio.sleep(3600)


def test_it_returns_what_the_work_returns() -> None:
    async def work(listener: Listener) -> int:
        await asyncio.sleep(0)
        return 42

    assert EngineJob(work).run() == 42


def test_it_raises_what_the_work_raises() -> None:
    async def work(listener: Listener) -> None:
        raise InvalidOptionError("The storage is missing.", parameter="storage")

    with pytest.raises(InvalidOptionError, match="The storage is missing"):
        EngineJob(work).run()


def test_reports_come_in_the_callers_thread_with_the_last_of_each_step() -> None:
    async def work(listener: Listener) -> None:
        listener(progress("Raw backup", 1))
        listener(progress("Raw backup", 10))
        listener(Note(level="warning", message="A pair has expired."))
        listener(progress("Raw backup checksum", 3))
        listener(progress("Raw backup checksum", 10))

    seen: list[Any] = []
    threads = set()

    def hear(event: Any) -> None:
        seen.append(event)
        threads.add(threading.current_thread())

    EngineJob(work).run(on_progress=hear, on_note=hear, interval_s=3600)
    assert [(e.step, e.done) if isinstance(e, Progress) else e.message for e in seen] == [
        "A pair has expired.",
        ("Raw backup", 10),
        ("Raw backup checksum", 10),
    ]
    assert threads == {threading.current_thread()}


def test_reports_come_at_a_steady_cadence_though_nothing_moves() -> None:
    heard = threading.Event()

    async def work(listener: Listener) -> None:
        listener(progress("Raw backup", 1))
        await asyncio.to_thread(heard.wait, 30)

    seen: list[Progress] = []

    def hear(event: Progress) -> None:
        seen.append(event)
        if len(seen) == 3:
            heard.set()

    EngineJob(work).run(on_progress=hear, interval_s=0.01)
    assert {e.done for e in seen} == {1}
    times = [e.elapsed_s for e in seen]
    assert times == sorted(set(times)), "the time goes on"


def test_a_cancelled_job_cleans_up_and_says_so() -> None:
    steps = {name: threading.Event() for name in ("started", "cleaning", "asked again", "cleaned")}

    async def work(listener: Listener) -> None:
        steps["started"].set()
        try:
            await asyncio.sleep(3600)
        finally:
            steps["cleaning"].set()
            await asyncio.to_thread(steps["asked again"].wait, 30)
            await asyncio.sleep(0.05)
            steps["cleaned"].set()

    job = EngineJob(work)

    def cancel() -> None:
        steps["started"].wait(30)
        job.cancel()
        steps["cleaning"].wait(30)
        job.cancel()  # a second one must not break into the cleaning up
        steps["asked again"].set()

    threading.Thread(target=cancel).start()
    with pytest.raises(JobCancelledError):
        job.run()
    assert steps["cleaned"].is_set()
    assert job.cancelled


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_thread_that_hangs_does_not_hold_a_job_that_is_over(end: str) -> None:
    """As one in a storage that does not answer any more."""
    started, released, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        released.wait(60)
        ended.set()

    async def work(listener: Listener) -> None:
        asyncio.get_running_loop().run_in_executor(None, hang)
        await asyncio.to_thread(started.wait, 30)
        if end == "failed":
            raise InvalidOptionError("no", parameter="x")
        job.cancel()
        await forever(listener)

    job = EngineJob(work)
    with pytest.raises(JobCancelledError if end == "cancelled" else InvalidOptionError):
        job.run()
    assert not ended.is_set()
    released.set()
    assert ended.wait(30)


def test_a_job_cancelled_before_it_starts_never_starts() -> None:
    async def work(listener: Listener) -> None:
        raise AssertionError

    job = EngineJob(work)
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.run()


def test_a_job_that_has_ended_may_be_cancelled() -> None:
    async def work(listener: Listener) -> int:
        return 1

    job = EngineJob(work)
    assert job.run() == 1
    job.cancel()


class Timeout(BaseException):
    """What Airflow raises out of a signal handler when a task takes too long."""


@pytest.fixture
def on_alarm() -> Any:
    before = signal.getsignal(signal.SIGUSR1)

    def install(handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())

    yield install
    signal.signal(signal.SIGUSR1, before)


def send_soon(started: threading.Event) -> None:
    def send() -> None:
        started.wait(10)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send).start()


def test_a_signal_handler_may_cancel_it(on_alarm: Any) -> None:
    started = threading.Event()

    async def work(listener: Listener) -> None:
        started.set()
        await forever(listener)

    job = EngineJob(work)
    on_alarm(job.cancel)
    send_soon(started)
    with pytest.raises(JobCancelledError):
        job.run(interval_s=3600)


def test_an_exception_from_a_signal_handler_stops_it_and_waits_for_its_cleaning_up(on_alarm: Any) -> None:
    started = threading.Event()
    cleaned: list[float] = []

    async def work(listener: Listener) -> None:
        started.set()
        try:
            await forever(listener)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(time.monotonic())

    def stop() -> None:
        raise Timeout

    on_alarm(stop)
    send_soon(started)
    with pytest.raises(Timeout):
        EngineJob(work).run(interval_s=3600)
    assert cleaned


def test_what_the_clean_up_has_to_say_is_told_after_an_exception_too(on_alarm: Any) -> None:
    started = threading.Event()

    async def work(listener: Listener) -> None:
        started.set()
        try:
            await forever(listener)
        finally:
            listener(progress("Raw restore", 1))
            listener(Note(level="warning", message="Store 1 stays in import mode."))

    def stop() -> None:
        raise Timeout

    on_alarm(stop)
    send_soon(started)
    told: list[Note] = []
    with pytest.raises(Timeout):
        EngineJob(work).run(interval_s=3600, on_note=told.append)
    assert [note.message for note in told] == ["Store 1 stays in import mode."]


def test_a_job_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch, on_alarm: Any) -> None:
    monkeypatch.setattr(engine_job, "GRACE_S", 0.01)
    started, released = threading.Event(), threading.Event()

    async def work(listener: Listener) -> None:
        started.set()
        try:
            await forever(listener)
        finally:
            await asyncio.to_thread(released.wait, 30)

    def stop() -> None:
        raise Timeout

    on_alarm(stop)
    send_soon(started)
    told: list[Note] = []
    with pytest.raises(Timeout):
        EngineJob(work).run(interval_s=3600, on_note=told.append)
    released.set()
    assert [note.message for note in told] == ["the job has not put the cluster back within 0.01 s"]
