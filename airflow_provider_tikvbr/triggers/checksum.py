"""The wait of the sensor in the triggerer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowSensorTimeout

from airflow_provider_tikvbr.engine_jobs import FAIL, ChecksumJob
from airflow_provider_tikvbr.engine_setup import PreparedJob
from airflow_provider_tikvbr.exceptions import BackupNotFoundError, TerminalError
from airflow_provider_tikvbr.task_report import TaskReport
from airflow_provider_tikvbr.triggers.engine import EngineTrigger

if TYPE_CHECKING:
    from airflow_provider_tikvbr.rawbr.summary import ChecksumSummary


class ChecksumTrigger(EngineTrigger):
    """Pokes as :class:`~airflow_provider_tikvbr.sensors.checksum.ChecksumSensor` does, until the two sides are equal.

    :param parameters: those of the sensor.
    :param owner: whose job it is.
    :param retry_in_s: not heeded: a comparison leaves nothing for another try.
    :param poke_interval_s: seconds between the end of a poke and the next.
    :param backoff: whether this interval doubles from poke to poke.
    :param max_wait_s: the longest interval then, in seconds; None for any.
    :param started: when the wait began, in seconds of the Unix clock: it may be that of an earlier triggerer.
    :param timeout_s: seconds from then after which a poke that finds nothing is the last.
    :param poke_again: whether a poke that fails, in a way that may pass, is one that finds nothing.
    """

    job_kind = ChecksumJob

    def __init__(
        self,
        *,
        poke_interval_s: float,
        started: float,
        timeout_s: float,
        backoff: bool = False,
        max_wait_s: float | None = None,
        poke_again: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._wait: dict[str, Any] = {
            "poke_interval_s": poke_interval_s,
            "started": started,
            "timeout_s": timeout_s,
            "backoff": backoff,
            "max_wait_s": max_wait_s,
            "poke_again": poke_again,
        }

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What another triggerer needs to make the same trigger."""
        path, arguments = super().serialize()
        return path, {**arguments, **self._wait}

    async def work(self, prepared: PreparedJob, report: TaskReport) -> ChecksumSummary:
        """Poke until the two sides are equal.

        :raises AirflowSensorTimeout: the sensor's timeout is over.
        """
        job = cast("ChecksumJob", prepared.job)
        pokes = 0
        while True:
            summary = await self._poke(prepared, report, job)
            if summary is not None:
                return summary
            ran_s = time.time() - self._wait["started"]
            if ran_s > self._wait["timeout_s"]:
                raise AirflowSensorTimeout(
                    f"Sensor has timed out; run duration of {ran_s:.3f} seconds exceeds the specified timeout of"
                    f" {self._wait['timeout_s']}."
                )
            await asyncio.sleep(self._interval_s(pokes))
            pokes += 1

    async def _poke(self, prepared: PreparedJob, report: TaskReport, job: ChecksumJob) -> ChecksumSummary | None:
        try:
            summary = cast("ChecksumSummary", await self.run_job(prepared, report))
            if job.judge(summary):
                return summary
            self.log.warning("%s", summary.line())
        except BackupNotFoundError as err:
            if job.on_missing == FAIL:
                raise
            self.log.info("%s", err)
        except TerminalError:
            raise
        except Exception as err:
            if not self._wait["poke_again"]:
                raise
            self.log.error("Sensor poke failed: %s", err)
        return None

    def _interval_s(self, pokes: int) -> float:
        interval_s = float(self._wait["poke_interval_s"])
        if self._wait["backoff"]:
            interval_s *= 2.0 ** min(pokes, 64)
        if self._wait["max_wait_s"] is not None:
            interval_s = min(interval_s, self._wait["max_wait_s"])
        return interval_s
