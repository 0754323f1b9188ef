"""A restore in the triggerer."""

from __future__ import annotations

from airflow_provider_tikvbr.engine_jobs import RestoreJob
from airflow_provider_tikvbr.triggers.engine import EngineTrigger


class RestoreRawTrigger(EngineTrigger):
    """Does what :class:`~airflow_provider_tikvbr.operators.restore.RestoreRawOperator` does."""

    job_kind = RestoreJob
