"""The DAGs of this project: what they are, and runs of each in Airflow against embedded clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from tests.dags.conftest import DAGS
from tests.support.golden import AES256_KEY

pytestmark = [
    # what Airflow's own modules say of each other
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette"),
]
IDS = sorted(path.stem for path in DAGS.glob("*.py"))
EACH = pytest.mark.parametrize("dag_id", IDS)


@pytest.fixture
def dags() -> dict[str, DAG]:
    # New ones for each test: a run in this process leaves its own parameters in the tasks, and the next would find them.
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DAGS))
    assert bag.import_errors == {}
    return dict(bag.dags)


# --- what they are ---


def fields(dag: DAG) -> dict[str, Any]:
    return {name: dag.params.get_param(name) for name in dag.params}


def test_there_is_one_in_each_file_and_named_after_it(dags: dict[str, DAG]) -> None:
    assert sorted(dags) == IDS == ["tikv_backup_scheduled", "tikv_convert_v1_to_v2", "tikv_restore"]


@EACH
def test_it_explains_itself(dags: dict[str, DAG], dag_id: str) -> None:
    dag = dags[dag_id]
    assert dag.doc_md
    assert "To use it" in dag.doc_md
    assert dag.description
    assert "tikv" in dag.tags


@EACH
def test_every_field_of_its_form_has_a_type_a_title_and_help(dags: dict[str, DAG], dag_id: str) -> None:
    for name, param in fields(dags[dag_id]).items():
        assert param.schema.get("type"), name
        assert param.schema.get("title"), name
        if "enum" not in param.schema:
            assert param.description or param.schema.get("description_md"), name


def test_the_scheduled_ones_form_is_complete_as_it_is(dags: dict[str, DAG]) -> None:
    dags["tikv_backup_scheduled"].params.validate()


@EACH
def test_every_field_of_its_form_is_used(dags: dict[str, DAG], dag_id: str) -> None:
    source = (DAGS / f"{dag_id}.py").read_text()
    for name in dags[dag_id].params:
        assert f"params.{name}" in source or f'["params"]["{name}"]' in source, name


@EACH
def test_its_tasks_are_retried(dags: dict[str, DAG], dag_id: str) -> None:
    assert all(task.retries == 2 for task in dags[dag_id].tasks)


# --- runs ---


class Run:
    """One run of a DAG, when it is over."""

    def __init__(self, dag: DAG, **params: Any) -> None:
        self._run = dag.test(run_conf=params)
        self._tasks = {ti.task_id: ti for ti in self._run.get_task_instances()}

    @property
    def states(self) -> dict[str, str]:
        return {name: str(ti.state) for name, ti in self._tasks.items()}

    def result(self, task_id: str) -> Any:
        return self._tasks[task_id].xcom_pull(task_ids=task_id)

    def tries(self, task_id: str) -> int:
        return int(self._tasks[task_id].try_number)

    def rendered(self, task_id: str) -> dict[str, Any]:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields

        return RenderedTaskInstanceFields.get_templated_fields(self._tasks[task_id]) or {}

    def state_store(self, task_id: str) -> dict[str, Any]:
        from airflow.models.task_state_store import TaskStateStoreModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            rows = session.scalars(
                select(TaskStateStoreModel).where(
                    TaskStateStoreModel.run_id == self._run.run_id, TaskStateStoreModel.task_id == task_id
                )
            )
            return {row.key: json.loads(row.value) for row in rows}


@pytest.mark.usefixtures("database", "connections")
def test_conversion(dags: dict[str, DAG], v1: ThreadedCluster, v2: ThreadedCluster, tmp_path: Path) -> None:
    run = Run(dags["tikv_convert_v1_to_v2"], storage=f"local://{tmp_path}")
    assert run.states == {"backup": "success", "restore": "success", "verify": "success"}
    assert [(p.key, p.value) for p in v2.pairs()] == [(p.key, p.value) for p in v1.pairs()]
    assert len(v2.pairs()) == 300
    assert run.result("backup")["verified"] is True
    assert run.result("backup")["dst_api_version"] == "V2"
    assert run.result("verify")["matches"] is True
    assert run.result("verify")["actual"] == run.result("restore")["checksum"] == run.result("backup")["checksum"]
    assert run.state_store("restore")["progress"]["percent"] == 100
    (folder,) = tmp_path.iterdir()
    assert run.rendered("backup")["storage"] == f"local://{folder}"
    assert "crypter_key" not in run.rendered("backup")


@pytest.mark.usefixtures("database", "connections")
def test_scheduled_backup_and_restore_of_it(
    dags: dict[str, DAG], monkeypatch: pytest.MonkeyPatch, v1: ThreadedCluster, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_TIKV_BACKUP_STORAGE", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_KEY", json.dumps({"conn_type": "generic", "password": AES256_KEY}))
    run = Run(dags["tikv_backup_scheduled"], crypter_key_conn_id="backup_key", gcttl="24h")
    assert run.states == {"backup": "success", "verify": "success"}
    assert run.result("backup")["total_kv"] == 300
    assert run.rendered("backup")["crypter_method"] == "aes256-ctr"
    assert AES256_KEY not in str(run.rendered("backup"))
    assert run.result("verify")["matches"] is True

    before = v1.pairs()
    v1.put([(before[7].key, b"spoilt")])
    (folder,) = tmp_path.iterdir()
    run = Run(dags["tikv_restore"], storage=str(folder), crypter_key_conn_id="backup_key")
    assert run.states == {"restore": "success"}
    assert run.result("restore")["verified"] is True
    assert v1.pairs() == before


@pytest.mark.usefixtures("database", "connections")
def test_a_backup_that_is_not_to_be_verified(dags: dict[str, DAG], tmp_path: Path) -> None:
    run = Run(dags["tikv_backup_scheduled"], storage=str(tmp_path), verify=False, start="6b65", end="6b66")
    assert run.states == {"backup": "success", "verify": "skipped"}


@pytest.mark.usefixtures("database", "connections")
def test_a_mistake_fails_the_task_at_its_first_try(dags: dict[str, DAG], tmp_path: Path) -> None:
    run = Run(dags["tikv_restore"], storage=str(tmp_path))
    assert run.states == {"restore": "failed"}
    assert run.tries("restore") == 1


@pytest.mark.usefixtures("database", "connections")
def test_a_schedule_without_a_storage_fails_at_its_first_try(
    dags: dict[str, DAG], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AIRFLOW_VAR_TIKV_BACKUP_STORAGE", raising=False)
    run = Run(dags["tikv_backup_scheduled"], storage=None)
    assert run.states["backup"] == "failed"
    assert run.tries("backup") == 1
    assert "the storage URL is empty" in "".join(capfd.readouterr())


def deferred(told: pytest.CaptureFixture[str]) -> int:
    """How many tasks the triggerer was given."""
    return "".join(told.readouterr()).count("Pausing task as DEFERRED")


@pytest.mark.usefixtures("database", "connections")
def test_deferred_tasks_do_the_same(
    dags: dict[str, DAG],
    v1: ThreadedCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_KEY", json.dumps({"conn_type": "generic", "password": AES256_KEY}))
    given = {"crypter_key_conn_id": "backup_key", "deferrable": True}
    run = Run(dags["tikv_backup_scheduled"], storage=str(tmp_path), **given)
    assert run.states == {"backup": "success", "verify": "success"}
    assert deferred(capfd) == 2
    assert run.result("backup")["total_kv"] == 300
    assert run.result("verify")["actual"] == run.result("backup")["checksum"]
    assert run.state_store("backup")["progress"]["percent"] == 100
    before = v1.pairs()
    v1.put([(before[7].key, b"spoilt")])
    (folder,) = tmp_path.iterdir()
    place = str(tmp_path / "elsewhere")
    run = Run(dags["tikv_restore"], storage=str(folder), checkpoint_storage=place, verify_files="sha256", **given)
    assert run.states == {"restore": "success"}
    assert deferred(capfd) == 1
    assert run.result("restore")["verified"] is True
    assert v1.pairs() == before


@pytest.mark.usefixtures("database", "connections")
def test_a_mistake_that_only_the_triggerer_sees_fails_the_task_at_its_first_try(
    dags: dict[str, DAG], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(dags["tikv_restore"], storage=str(tmp_path), deferrable=True)
    assert run.states == {"restore": "failed"}
    assert run.tries("restore") == 1
    assert "there is no backup in" in "".join(capfd.readouterr())


SECRETS_DAG = """
from airflow.sdk import DAG
from airflow_provider_tikvbr.operators.backup import BackupRawOperator

with DAG("secrets", schedule=None):
    good = BackupRawOperator(
        task_id="good",
        storage="{{ params.folder }}",
        crypter_method="aes256-ctr",
        crypter_key="{{ conn.backup_key.password }}",
    )
    bad = BackupRawOperator(
        task_id="bad",
        storage="s3://bucket/prefix?access-key=AKIASOMETHING&secret-access-key={{ params.secret }}&nonsense=1",
    )
    good >> bad
"""


@pytest.mark.usefixtures("database", "connections")
def test_no_secret_is_shown_or_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "secrets.py").write_text(SECRETS_DAG)
    bundle = {
        "name": "secrets",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(tmp_path / "dags")},
    }
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_KEY", json.dumps({"conn_type": "generic", "password": AES256_KEY}))
    dag = DagBag(str(tmp_path / "dags")).dags["secrets"]
    secret = "s3cr3t/of+the+bucket"
    dag.params = {"folder": str(tmp_path / "backup"), "secret": secret}  # type: ignore[assignment]
    run = Run(dag)
    assert run.states == {"good": "success", "bad": "failed"}
    told = capfd.readouterr()
    stored = json.dumps([run.rendered("good"), run.rendered("bad"), run.result("good"), run.state_store("good")])
    assert "nonsense" in told.out + told.err
    assert "***" in run.rendered("bad")["storage"]
    for hidden in (AES256_KEY, "AKIASOMETHING"):
        assert hidden not in told.out + told.err + stored
    # Airflow tells a DAG's parameters by itself; they are no place for a secret.
    assert secret not in stored
