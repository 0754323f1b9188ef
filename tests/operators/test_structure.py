"""What is true of every operator and sensor of this package."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, redact
from airflow.sdk import DAG
from structlog.testing import capture_logs

from airflow_provider_tikvbr import engine_jobs, engine_setup
from airflow_provider_tikvbr.connections import StorageAccess
from airflow_provider_tikvbr.engine_task import job_owner
from airflow_provider_tikvbr.exceptions import InvalidOptionError, TransientError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.storage.s3_location import S3Credentials

CONNECTION = {
    *("ca", "cert", "key", "keyspace", "address_map", "check_requirements"),
    *("grpc_keepalive_time", "grpc_keepalive_timeout", "grpc_max_recv_msg_size"),
}
FRONT = {
    *CONNECTION,
    *("storage", "tikv_conn_id", "storage_conn_id", "send_credentials_to_tikv", "no_credentials"),
    *("crypter_key_conn_id", "log_file", "log_level", "log_format", "redact_log"),
    *("checkpoint_storage", "deferrable"),
}
# What the engine is told of the task itself.
OF_THE_TASK = {"owner", "retry_in_s"}
# Rendered when they are used, and kept nowhere.
SECRET = {"crypter_key", "key"}

CLASSES = pytest.mark.parametrize(
    ("cls", "options", "own"),
    [
        pytest.param(BackupRawOperator, backup_options, set(), id="backup"),
        pytest.param(RestoreRawOperator, restore_options, set(), id="restore"),
        pytest.param(ChecksumSensor, checksum_options, {"on_mismatch", "on_missing"}, id="checksum"),
    ],
)


def parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(cls.__init__).parameters)
    del found["self"], found["kwargs"]
    return found


@CLASSES
def test_every_option_of_the_engine_is_a_parameter(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    front = FRONT if cls is RestoreRawOperator else FRONT - {"checkpoint_storage"}
    assert set(parameters(cls)) == set(inspect.signature(options).parameters) - OF_THE_TASK | front | own


@CLASSES
def test_every_parameter_but_the_secrets_is_a_template(
    cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    assert sorted(cls.template_fields) == sorted(set(parameters(cls)) - SECRET)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters(cls).values())


@CLASSES
def test_defaults_mean_what_the_engines_do(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    mine = {name: p.default for name, p in parameters(cls).items() if name not in FRONT | own}
    assert options(**mine) == options()


@CLASSES
def test_what_is_given_is_kept_unread(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    given = {name: f"{{{{ params.{name} }}}}" for name in parameters(cls)}
    operator = cls(task_id="task", **given)
    assert {name: getattr(operator, name) for name in given} == given


@CLASSES
def test_every_option_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    seen: dict[str, Any] = {}

    def record(**given: Any) -> None:
        seen.update(given)
        raise InvalidOptionError("enough")

    monkeypatch.setattr(engine_jobs, options.__name__, record)
    given = {name: f"the {name}" for name in set(parameters(cls)) - own - FRONT}
    with pytest.raises(AirflowFailException, match="enough"):
        cls(task_id="task", storage="/x", **given).execute({})
    assert {name: value for name, value in seen.items() if name not in OF_THE_TASK} == given


@CLASSES
def test_every_parameter_of_the_connection_reaches_the_hook(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    seen: dict[str, Any] = {}

    def record(hook: TiKVHook, **given: Any) -> None:
        seen.update(given)
        raise InvalidOptionError("enough")

    monkeypatch.setattr(TiKVHook, "cluster_options", record)
    given = {name: f"the {name}" for name in CONNECTION}
    with pytest.raises(AirflowFailException, match="enough"):
        cls(task_id="task", storage="/x", **given).execute({})
    assert seen == given


@CLASSES
def test_the_storage_is_opened_as_told_and_always_closed(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_KEYS",
        json.dumps(
            {"conn_type": "aws", "login": "AKIA", "password": "topsecret", "extra": {"aws_session_token": "tok"}}
        ),
    )
    seen: dict[str, Any] = {}

    class Recorder(NoopStorage):
        async def close(self) -> None:
            seen["closed"] = True
            await super().close()

    def record(url: str, **given: Any) -> NoopStorage:
        seen.update(given, url=url)
        return Recorder()

    monkeypatch.setattr(engine_setup, "open_storage", record)
    operator = cls(
        task_id="task",
        storage="s3://bucket",
        storage_conn_id="keys",
        send_credentials_to_tikv="False",
        tikv_conn_id="tikv_nowhere",
    )
    with pytest.raises(TransientError):
        operator.execute({})
    assert seen == {
        "url": "s3://bucket",
        "credentials": S3Credentials(access_key="AKIA", secret_access_key="topsecret", session_token="tok"),
        "send_credentials": False,
        "environment_first": True,
        "no_credentials": False,
        "closed": True,
    }
    assert "topsecret" not in str(redact("it is topsecret"))


@CLASSES
def test_the_storage_connection_may_say_where_the_storage_is(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    said = StorageAccess(credentials=None, parameters="endpoint=http%3A%2F%2Fminio%3A9000", unread=("colour",))
    monkeypatch.setattr(engine_setup, "storage_access", lambda conn_id, url: said)
    seen: list[str] = []

    def record(url: str, **given: Any) -> NoopStorage:
        seen.append(url)
        return NoopStorage()

    monkeypatch.setattr(engine_setup, "open_storage", record)
    operator = cls(task_id="task", storage="s3://bucket?sse=x", storage_conn_id="keys", tikv_conn_id="tikv_nowhere")
    with capture_logs() as logs, pytest.raises(TransientError):
        operator.execute({})
    assert seen == ["s3://bucket?sse=x&endpoint=http%3A%2F%2Fminio%3A9000"]
    (told,) = (entry for entry in logs if entry["log_level"] == "warning")
    assert told["event"].endswith("these fields are not heeded: colour")


@CLASSES
def test_templates_are_rendered(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    names = set(parameters(cls))
    operator = cls(task_id="task", **{name: f"{{{{ params.{name} }}}}" for name in names})
    operator.render_template_fields({"params": {name: f"rendered {name}" for name in names}})
    assert {getattr(operator, name) for name in names - SECRET} == {f"rendered {name}" for name in names - SECRET}
    assert {getattr(operator, name) for name in SECRET} == {f"{{{{ params.{name} }}}}" for name in SECRET}


@CLASSES
def test_secrets_of_the_storage_url_are_hidden_once_rendered(
    cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    secret = f"s3cr3t+of/{cls.__name__}"
    operator = cls(task_id="task", storage="{{ params.url }}")
    url = f"s3://bucket/p?access-key=AKIA&secret-access-key={secret.replace('/', '%2F')}"
    operator.render_template_fields({"params": {"url": url}})
    shown = str(redact(operator.storage))
    assert "***" in shown
    assert secret not in shown
    assert secret.replace("/", "%2F") not in shown


@CLASSES
@pytest.mark.parametrize("url", ["s3:/bucket?secret-access-key={}", "s3//bucket?secret-access-key={}", "s3://me:{}@b"])
def test_secrets_of_a_misspelt_url_are_hidden_too(
    cls: type[Any], options: Callable[..., Any], own: set[str], url: str
) -> None:
    secret = f"misspelt/{cls.__name__}{len(url)}"
    operator = cls(task_id="task", storage="{{ params.url }}")
    operator.render_template_fields({"params": {"url": url.format(secret)}})
    assert secret in operator.storage
    assert secret not in str(redact(operator.storage))
    with pytest.raises(AirflowFailException) as caught:
        operator.execute({})
    assert secret not in str(caught.value)


@CLASSES
def test_secrets_of_a_template_that_cannot_be_rendered_are_hidden(
    cls: type[Any], options: Callable[..., Any], own: set[str]
) -> None:
    secret = f"unrendered/{cls.__name__}"
    template = f"s3://bucket/{{{{ 1 / 0 }}}}?secret-access-key={secret}"
    with pytest.raises(ZeroDivisionError):
        cls(task_id="task", storage=template).render_template_fields({})
    assert secret not in str(redact(template))


@CLASSES
def test_a_private_key_among_certificates_is_hidden(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    line = f"MIIEverySecret{cls.__name__}"
    operator = cls(task_id="task", storage="/x", cert="{{ params.pem }}")
    pem = f"-----BEGIN CERTIFICATE-----\nMIIx\n-----END-----\n-----BEGIN PRIVATE KEY-----\n{line}\n-----END-----\n"
    operator.render_template_fields({"params": {"pem": pem}})
    assert line in operator.cert
    assert line not in str(redact(operator.cert))


@CLASSES
def test_default_args_reach_it(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    with DAG("dag", schedule=None, default_args={"tikv_conn_id": "other", "retries": 7}):
        operator = cls(task_id="task", storage="/x")
    assert operator.tikv_conn_id == "other"
    assert operator.retries == 7


@CLASSES
def test_it_may_be_mapped(cls: type[Any], options: Callable[..., Any], own: set[str]) -> None:
    with DAG("dag", schedule=None):
        cls.partial(task_id="task", storage="/x").expand(tikv_conn_id=["a", "b"])


def test_making_one_logs_and_touches_nothing() -> None:
    with capture_logs() as logs:
        BackupRawOperator(task_id="task", storage="nonsense://", tikv_conn_id="nobody", ratelimit="x")
    assert logs == []


class TaskInstance:
    dag_id, task_id, run_id = "dag", "task", "manual__1"

    def __init__(self, map_index: int) -> None:
        self.map_index = map_index


def test_the_lock_names_the_task_whatever_the_try() -> None:
    assert job_owner({}) == ""
    assert job_owner({"ti": TaskInstance(-1)}) == "Airflow dag.task manual__1"  # type: ignore[typeddict-item]
    assert job_owner({"ti": TaskInstance(3)}) == "Airflow dag.task[3] manual__1"  # type: ignore[typeddict-item]
