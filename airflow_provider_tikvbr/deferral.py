"""How a task hands its job to the triggerer, and takes back what came of it.

What a trigger is given stands in Airflow's database, so no secret may be among it: connections and files are named, and
looked up where the job runs.
"""

from __future__ import annotations

import enum
import re
from abc import abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.providers.common.compat.sdk import AirflowSensorTimeout

from airflow_provider_tikvbr import exceptions
from airflow_provider_tikvbr.engine_task import SECRET_FIELDS, EngineTask, job_owner
from airflow_provider_tikvbr.exceptions import InvalidOptionError, TikvBrError, TransientError
from airflow_provider_tikvbr.masking import secrets_of_url
from airflow_provider_tikvbr.rawbr.parsing import parse_flag
from airflow_provider_tikvbr.secret_text import looks_secret
from airflow_provider_tikvbr.task_report import CHECKPOINT_KEY, PROGRESS_KEY, TaskState

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_tikvbr.triggers.engine import EngineTrigger

# A template that names a connection or a variable and nothing else: it can be rendered anywhere, and holds no secret.
PORTABLE: Final = re.compile(
    r"\s*\{\{-?\s*(?:conn|var\.value|var\.json)(?:\.[A-Za-z_]\w*|\.get\(\s*(['\"])[\w.:-]+\1\s*\))+\s*(?:\|\s*(?:trim|lower|upper|string)\s*)*-?\}\}\s*"
)


class DeferrableTask(EngineTask):
    """A task whose job may run in the triggerer."""

    @abstractmethod
    def trigger_kind(self) -> type[EngineTrigger]:
        """The trigger that does the same."""

    def run_or_defer(self, context: Context) -> dict[str, Any]:
        """Do the job here, or let the triggerer do it.

        :return: the result, for XCom.
        """
        with self.job():
            if parse_flag(self.deferrable, parameter="deferrable"):
                self.hand_over(context)
            summary = self.run_engine(context, self.prepare(context))
        return self.succeed(context, summary.line(), summary.as_dict())

    def hand_over(self, context: Context, **more: Any) -> NoReturn:
        """Check the options, and let the triggerer do the job.

        :param more: what else the trigger is told.
        :raises TaskDeferred: always, if all is well.
        :raises InvalidOptionError: an option cannot be right, or holds a secret.
        """
        # Mistakes are told by this try, and not by the triggerer later.
        self.prepare(context)
        self.tell_resume(context, TaskState(context, self.log))
        trigger = self.trigger_kind()(
            parameters=self._portable_parameters(context),
            owner=job_owner(context),
            retry_in_s=self.retry_in_s(context),
            **more,
        )
        self.defer(trigger=trigger, method_name="execute_complete", timeout=self.execution_timeout)
        raise RuntimeError("Airflow has not deferred the task")

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> Any:
        """Take what came of the job, in a worker again.

        :param event: what the trigger has told.
        :return: the same result as that of a task that is not deferred.
        :raises AirflowFailException: the same would fail again.
        :raises AirflowSensorTimeout: the sensor's timeout is over.
        :raises TikvBrError: another try may well succeed.
        """
        state = TaskState(context, self.log)
        with self.job():
            if event is None:
                raise TransientError("the triggerer has ended the job without a result")
            for key in (PROGRESS_KEY, CHECKPOINT_KEY):
                if event.get(key):
                    state.keep(key, event[key])
            if event["status"] == "timeout":
                raise AirflowSensorTimeout(event["message"])
            if event["status"] != "success":
                raise_failure(event)
        state.forget_checkpoint()
        return self.succeed(context, event["line"], event["result"])

    def _portable_parameters(self, context: Context) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self.parameters().items():
            if name == "deferrable":
                continue
            if name in SECRET_FIELDS:
                found[name] = self._portable_secret(name, value, context)
                continue
            found[name] = portable(value, parameter=name)
            _refuse_secrets(name, found[name])
        return found

    def _portable_secret(self, name: str, value: Any, context: Context) -> str:
        if value is None or value == "":
            return ""
        if isinstance(value, str) and PORTABLE.fullmatch(value):
            return value
        rendered = str(super().render_template(value, context) or "")
        if name == "key" and "-----BEGIN" not in rendered and not looks_secret(rendered):
            return rendered
        if rendered:
            remedy = (
                "name a file, or put the key into the connection"
                if name == "key"
                else "name a connection in crypter_key_conn_id or a file in crypter_key_file, or write {{ conn.NAME.password }}"
            )
            raise InvalidOptionError(
                f"{name} is a secret, and a deferred task would have to store it in Airflow's database: {remedy}",
                parameter=name,
            )
        return ""


def portable(value: Any, *, parameter: str) -> Any:
    """A parameter as JSON can hold it, with the same meaning.

    :raises InvalidOptionError: that cannot be done.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): portable(part, parameter=parameter) for name, part in value.items()}
    raise InvalidOptionError(
        f"{parameter} is {value!r}, which a deferred task cannot hand on: give text", parameter=parameter
    )


def _refuse_secrets(name: str, value: Any) -> None:
    if not isinstance(value, str):
        return
    remedy = ""
    if "PRIVATE KEY-----" in value:
        remedy = "name a file, or put the key into the connection"
    elif name in ("storage", "checkpoint_storage") and any(secrets_of_url(value)):
        remedy = "name a connection in storage_conn_id that holds the keys"
    if remedy:
        raise InvalidOptionError(
            f"{name} holds keys, and a deferred task would have to store them in Airflow's database: {remedy}",
            parameter=name,
        )


def describe_failure(error: BaseException) -> dict[str, Any]:
    """An error as JSON, for the worker that has to raise it."""
    if not isinstance(error, TikvBrError):
        message = " ".join(str(error).split())
        return {"type": "", "message": f"{type(error).__name__}: {message}" if message else type(error).__name__}
    fields = {name: value for name, value in error.attrs().items() if isinstance(value, (bool, int, float, str))}
    return {"type": type(error).__name__, "message": error.message, "fields": fields}


def raise_failure(event: Mapping[str, Any]) -> NoReturn:
    """Raise what :func:`describe_failure` has described.

    :raises TikvBrError: always; what is no error of this package comes as a :class:`TransientError`, for nobody knows
        that it would happen again.
    """
    kind = getattr(exceptions, str(event.get("type", "")), None)
    if not (isinstance(kind, type) and issubclass(kind, TikvBrError)):
        raise TransientError(str(event["message"]))
    error = kind.__new__(kind)
    TikvBrError.__init__(error, str(event["message"]))
    vars(error).update(event.get("fields", {}))
    if isinstance(error, InvalidOptionError) and not hasattr(error, "parameter"):
        error.parameter = None
    raise error
