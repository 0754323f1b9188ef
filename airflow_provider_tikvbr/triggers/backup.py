"""A backup in the triggerer."""

from __future__ import annotations

from airflow_provider_tikvbr.engine_jobs import BackupJob
from airflow_provider_tikvbr.triggers.engine import EngineTrigger


class BackupRawTrigger(EngineTrigger):
    """Does what :class:`~airflow_provider_tikvbr.operators.backup.BackupRawOperator` does."""

    job_kind = BackupJob
