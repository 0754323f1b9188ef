"""What a job that failed leaves on standard output: the line of tikv-br's that a script looks for."""

from __future__ import annotations

import asyncio

from airflow_provider_tikvbr.exceptions import ChecksumMismatchError, JobCancelledError, UnverifiedError
from airflow_provider_tikvbr.rawbr.events import Event, Progress

# The jobs whose units tikv-br tells in its summary, and how it calls their number.
UNITS = {"Raw backup": "backup-total-regions", "Raw restore": "restore-files"}


class Tally:
    """Remembers how far a job has come, for the case that it fails.

    :param title: what the job is, such as ``Raw backup``; its first step is named like it.
    :param unit: what a failed range is called.
    """

    def __init__(self, title: str, *, unit: str = "") -> None:
        self._title = title
        self._unit = unit
        self._work: Progress | None = None
        self._beyond = False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if not isinstance(event, Progress):
            return
        if event.step == self._title:
            self._work = event
        else:
            self._beyond = True

    def summary(self, error: BaseException) -> dict[str, object]:
        """The fields of tikv-br's failure line.

        As in tikv-br, a backup that breaks off has one failed range, the whole of it; what a restore has finished by
        then are its files. A job that fails after its work, in the checksum, has no failed range. The error stands in
        the line when there is a failed range, unless somebody stopped the job.
        """
        found: dict[str, object] = {"total-ranges": 0, "ranges-succeed": 0, "ranges-failed": 0}
        work = self._work
        if work is None or self._title not in UNITS:
            return found
        over = self._beyond or isinstance(error, (ChecksumMismatchError, UnverifiedError))
        succeeded = work.done if over or self._title == "Raw restore" else 0
        failed = 0 if over else 1
        found |= {"total-ranges": succeeded + failed, "ranges-succeed": succeeded, "ranges-failed": failed}
        found[UNITS[self._title]] = work.total
        if failed and not isinstance(error, (JobCancelledError, asyncio.CancelledError)):
            found |= {"unit-name": self._unit, "error": error}
        return found

    def said_of_checksum(self, error: BaseException) -> str:
        """What tikv-br says besides when the work is done and only the checksum is wrong; empty if it is not so."""
        if self._title not in UNITS or not isinstance(error, (ChecksumMismatchError, UnverifiedError)):
            return ""
        why = "Checksum mismatch" if isinstance(error, ChecksumMismatchError) else str(error).rstrip(".")
        return f"{self._title} succeeded, but checksum failed, err:{why}."
