"""An Airflow of its own: scheduler, DAG processor, triggerer and API server, with SQLite, in a folder."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(what: str, happens: Callable[[], Any], *, limit_s: float = 120.0, every_s: float = 0.5) -> Any:
    """Wait until something is so, and return it.

    :raises TimeoutError: it is not, in time.
    """
    deadline = time.monotonic() + limit_s
    while not (found := happens()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)
    return found


class Airflow:
    """The processes, and what their API says.

    :param home: its folder.
    :param dags: the folder of DAGs.
    :param environment: more variables, such as connections.
    """

    def __init__(self, home: Path, dags: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self._home = home
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__API__SECRET_KEY": "standalone",
            "AIRFLOW__API_AUTH__JWT_SECRET": base64.b64encode(os.urandom(64)).decode(),
            # A triggerer or a task that died is missed soon.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
            "AIRFLOW__TIKVBR__PROGRESS_INTERVAL": "5",
            **environment,
        }
        self._url = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(base_url=f"{self._url}/api/v2", timeout=30)

    def run(self, *arguments: str) -> None:
        """Run one command of Airflow to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments], env=self._env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def start(self, component: str) -> None:
        """Start one of the processes, in a group of its own."""
        with (self._home / f"{component}.out").open("ab") as out:
            self._running[component] = subprocess.Popen(
                [sys.executable, "-m", "airflow", component],
                env=self._env,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def end(self, component: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one of the processes, with all that it has started."""
        process = self._running.pop(component)
        with contextlib.suppress(ProcessLookupError):
            if how is signal.SIGKILL:
                os.killpg(process.pid, how)
            else:
                process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """While the block runs, all is up."""
        self.run("db", "migrate")
        try:
            for component in COMPONENTS:
                self.start(component)
            until("the API server answers", self._token, limit_s=120)
            yield
        finally:
            for component in list(self._running):
                self.end(component)
            self._client.close()

    def _token(self) -> bool:
        try:
            answer = httpx.get(f"{self._url}/auth/token", timeout=10)
            if answer.is_success:
                self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            return answer.is_success
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Any:
        """What the API says."""
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.json()

    def begin(self, dag_id: str) -> str:
        """Start a run of a DAG, which is found soon if it is new."""

        def known() -> bool:
            return self._client.get(f"/dags/{dag_id}").is_success

        until(f"{dag_id} is known", known)
        self._client.patch(f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
        answer = self._client.post(f"/dags/{dag_id}/dagRuns", json={"logical_date": None})
        answer.raise_for_status()
        return f"/dags/{dag_id}/dagRuns/{answer.json()['dag_run_id']}/taskInstances/task"

    def state(self, task: str) -> str:
        """The state of a task."""
        return str(self.get(task)["state"])

    def fail(self, task: str) -> None:
        """Mark a task as failed, as a user does."""
        self._client.patch(task, json={"new_state": "failed"}).raise_for_status()

    def pool(self) -> dict[str, int]:
        """The slots of the default pool."""
        found = self.get("/pools/default_pool")
        return {name: found[f"{name}_slots"] for name in ("running", "queued", "deferred", "open")}

    def log(self, task: str, try_number: int = 1) -> str:
        """The log of a try."""
        answer = self._client.get(f"{task}/logs/{try_number}", headers={"Accept": "application/json"})
        if not answer.is_success:
            return answer.text
        return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in answer.json()["content"])

    def result(self, task: str) -> Any:
        """What a task has returned."""
        found = self.get(f"{task}/xcomEntries/return_value?deserialize=true")["value"]
        return json.loads(found) if isinstance(found, str) else found

    def kept(self, task: str) -> Any:
        """What a task has kept in its state store."""
        return self.get(f"{task}/state-store")
