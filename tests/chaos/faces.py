"""The job of a run as processes do it that may be killed: the command, a worker and a triggerer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from airflow.sdk.exceptions import TaskDeferred

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator

FACES = ("command", "worker", "triggerer")
OPERATORS = {"backup": BackupRawOperator, "restore": RestoreRawOperator}
TRIES = 10


def run_face(face: str, what: str, pd: str, options: dict[str, str], log: Path, number: int) -> None:
    """Do a job, and end this process with 0 if it has succeeded.

    :param face: who does it.
    :param what: ``backup`` or ``restore``.
    :param pd: PD's addresses.
    :param options: the job's, by the names that operators use.
    :param log: where to write what it says.
    :param number: which try it is, from 1 on.
    """
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        code = _command(what, pd, options) if face == "command" else _task(face, what, pd, options, number)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # As a command ends; what a test framework has prepared for the end of its own process is none of ours.
    os._exit(code)


def _command(what: str, pd: str, options: dict[str, str]) -> int:
    return main([what, "raw", f"--pd={pd}", *(f"{_flag(name)}={value}" for name, value in options.items())])


def _flag(name: str) -> str:
    words = name.replace("_", "-")
    return "--" + (f"crypter.{words.removeprefix('crypter-')}" if words.startswith("crypter-") else words)


def _task(face: str, what: str, pd: str, options: dict[str, str], number: int) -> int:
    os.environ["AIRFLOW_CONN_TIKV_DEFAULT"] = json.dumps({"conn_type": "tikv", "host": pd})
    ti = SimpleNamespace(
        dag_id="dag", task_id=what, run_id="manual__2026", map_index=-1, try_number=number, max_tries=TRIES
    )
    context: Any = {"ti": ti}
    operator: Any = OPERATORS[what](
        task_id=what, **cast("dict[str, Any]", options), deferrable=face == "triggerer", retries=TRIES
    )
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        payload = asyncio.run(_fire(deferred.trigger))
        sys.stdout.write(f"{payload}\n")
        return 0 if payload["status"] == "success" else 1
    return 0


async def _fire(trigger: Any) -> dict[str, Any]:
    events = [event async for event in trigger.run()]
    return cast("dict[str, Any]", events[0].payload)
