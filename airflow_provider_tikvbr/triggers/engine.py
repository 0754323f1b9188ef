"""What the triggers share: a job of the engine on the triggerer's event loop.

The triggerer runs many triggers on one loop, so nothing here may block it: connections are looked up, files read and
storages opened in threads; the engine itself is asynchronous.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from airflow.providers.common.compat.sdk import AirflowSensorTimeout
from airflow.sdk.execution_time.context import ConnectionAccessor, VariableAccessor
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_tikvbr.deferral import describe_failure
from airflow_provider_tikvbr.engine_jobs import Summary, TaskJob
from airflow_provider_tikvbr.engine_setup import JobSetup, PreparedJob
from airflow_provider_tikvbr.engine_task import progress_interval_s
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Event, Note, Progress
from airflow_provider_tikvbr.rawbr.parsing import parse_flag
from airflow_provider_tikvbr.rawbr.tasks import Handover, expect_handover, settle
from airflow_provider_tikvbr.task_report import (
    CHECKPOINT_KEY,
    PROGRESS_KEY,
    TaskReport,
    TaskState,
    checkpoint_numbers,
    progress_numbers,
    reporting,
)
from airflow_provider_tikvbr.tikv.redaction import redacting

T = TypeVar("T")

# How long a cancelled job may take to put the cluster back before the trigger lets go of it. It goes on then, for as long
# as the triggerer lives, and what it leaves after that runs out by itself.
GRACE_S = 5.0

_lingering: set[asyncio.Task[Any]] = set()


class EngineTrigger(BaseTrigger):
    """A trigger that does a job, tells its progress in the task's log, and fires one event when it is over.

    The event is a success with ``result`` and ``line``, or an error as
    :func:`~airflow_provider_tikvbr.deferral.describe_failure` describes it. After a restart of the triggerer the job begins
    anew, and goes on from its checkpoint.

    :param parameters: those of the operator by name, as JSON can hold them, and without secrets.
    :param owner: whose job it is, the same for every try.
    :param retry_in_s: when the job will be tried again should it fail, in seconds from then; None if it will not be.
    """

    job_kind: ClassVar[type[TaskJob]]

    def __init__(self, *, parameters: dict[str, Any], owner: str = "", retry_in_s: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = parameters
        self.owner = owner
        self.retry_in_s = retry_in_s
        self._work: asyncio.Task[dict[str, Any]] | None = None
        self._handover: Handover | None = None
        self._latest: tuple[Progress, float] | None = None
        self._progress: Progress | None = None
        self._saved: CheckpointSaved | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What another triggerer needs to make the same trigger."""
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}", {
            "parameters": self.parameters,
            "owner": self.owner,
            "retry_in_s": self.retry_in_s,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do the job; cancelled, it puts the cluster back first."""
        # In a task of its own, for the triggerer cancels this one again each second until it has ended: that must not
        # break into the cleaning up.
        self._work = work = asyncio.ensure_future(self._do())
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as err:
            # Without a reason it is the triggerer that ends, and another one goes on.
            await self._stop(work, for_good=bool(err.args) and bool(err.args[0]))
            raise
        if work.cancelled():
            raise asyncio.CancelledError
        yield TriggerEvent(work.result())  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Somebody has ended the task: end the job, if it goes on still."""
        # It has as a rule: Airflow cancels a trigger before it asks this of it.
        if self._work is not None and not self._work.done():
            await self._stop(self._work, for_good=True)

    async def work(self, prepared: PreparedJob, report: TaskReport) -> Summary:
        """Do the job, to the result that the event will tell.

        :raises TikvBrError: as the job does.
        """
        return await self.run_job(prepared, report)

    async def run_job(self, prepared: PreparedJob, report: TaskReport) -> Summary:
        """Do the job once, telling its progress at the configured cadence."""
        interval_s = await in_thread(progress_interval_s)
        ticker = asyncio.ensure_future(self._tick(report, interval_s))
        try:
            return await prepared.run(lambda event: self._listen(report, event))
        finally:
            ticker.cancel()
            if self._latest is not None:
                report.progress(self._latest[0])
                self._latest = None

    async def _do(self) -> dict[str, Any]:
        """The event's payload."""
        # Unless somebody says that it is for good: a triggerer that ends cancels every task there is, this one too.
        self._handover = expect_handover()
        self._handover.announced = True
        outcome: dict[str, Any]
        told: dict[str, Any] = {}
        try:
            with redacting(parse_flag(self.parameters.get("redact_log"), parameter="redact_log")):
                prepared = await in_thread(self._prepare)
                async with self._reporting() as report:
                    summary = await self.work(prepared, report)
                    report.done(summary)
            outcome = {"status": "success", "line": summary.line(), "result": summary.as_dict()}
        except AirflowSensorTimeout as err:
            outcome = {"status": "timeout", "message": str(err)}
        except Exception as err:
            if not isinstance(err, TikvBrError):
                self.log.exception("The job has failed unexpectedly.")
            outcome = {"status": "error", **describe_failure(err)}
        if self._progress is not None:
            told[PROGRESS_KEY] = progress_numbers(self._progress)
        if self._saved is not None and outcome["status"] != "success":
            told[CHECKPOINT_KEY] = checkpoint_numbers(self._saved)
        return {**outcome, **told}

    def _prepare(self) -> PreparedJob:
        setup = JobSetup(self.parameters, render=self._render_secret, warn=lambda said: self.log.warning("%s", said))
        return setup.prepare(self.job_kind, owner=self.owner, retry_in_s=self.retry_in_s)

    def _render_secret(self, template: Any) -> Any:
        """Render a template that names a connection or a variable, and nothing else; it blocks."""
        context: Any = {
            "conn": ConnectionAccessor(),
            "var": {
                "value": VariableAccessor(deserialize_json=False),
                "json": VariableAccessor(deserialize_json=True),
            },
        }
        return self.render_template(template, context)

    @asynccontextmanager
    async def _reporting(self) -> AsyncIterator[TaskReport]:
        logs = {name: self.parameters.get(name, "") for name in ("log_file", "log_level", "log_format")}
        manager: AbstractContextManager[TaskReport] = reporting(
            self.log, TaskState({}, self.log), in_thread=True, **logs
        )
        # Its file is opened and closed in threads.
        report = await in_thread(manager.__enter__)
        try:
            yield report
        except BaseException as err:
            await settle(in_thread(manager.__exit__, type(err), err, err.__traceback__))
            raise
        await in_thread(manager.__exit__, None, None, None)

    def _listen(self, report: TaskReport, event: Event) -> None:
        # Nothing is kept but the last of each kind, however much there is to tell.
        if isinstance(event, Note):
            report.note(event)
        elif isinstance(event, CheckpointSaved):
            self._saved = event
            report.checkpoint(event)
        else:
            if self._latest is not None and self._latest[0].step != event.step:
                report.progress(self._latest[0])
            self._latest = (event, time.monotonic())
            self._progress = event

    async def _tick(self, report: TaskReport, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            if self._latest is not None:
                progress, at = self._latest
                report.progress(replace(progress, elapsed_s=progress.elapsed_s + time.monotonic() - at))

    async def _stop(self, work: asyncio.Task[dict[str, Any]], *, for_good: bool) -> None:
        if self._handover is not None and for_good:
            self._handover.announced = False
        if not _is_cancelling(work):
            work.cancel()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GRACE_S
        while not work.done() and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait((work,), timeout=left)
            except asyncio.CancelledError:
                # The triggerer is impatient. It gets its way soon.
                continue
        if not work.done():
            self.log.warning("The job was asked to stop, and has not put the cluster back within %g s.", GRACE_S)
            _lingering.add(work)
            work.add_done_callback(_lingering.discard)
        elif not work.cancelled() and work.exception() is None and work.result()["status"] != "success":
            self.log.warning("The job was asked to stop, and ended so: %s", work.result()["message"])
        else:
            self.log.info("The job was asked to stop, and has put the cluster back as it was.")


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Make a call that may block, and may ask Airflow for something, in a thread."""
    # Not asyncio.to_thread: older cores ask Airflow by way of the loop that asgiref knows to be the main one.
    return await sync_to_async(call, thread_sensitive=False)(*arguments)


def _is_cancelling(task: asyncio.Task[Any]) -> bool:
    """Whether somebody has cancelled the task already, as far as this Python can tell.

    A triggerer that ends cancels every task there is, and a second cancellation would break into the cleaning up.
    """
    count = getattr(task, "cancelling", None)
    return bool(count is not None and count())
