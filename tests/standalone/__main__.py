"""Proves what only a whole Airflow can prove; prints what it has seen, and ends with 1 if something was not as it should be.

::

    python -m tests.standalone              # about five minutes
    python -m tests.standalone --minutes 10 slots   # a deferred backup of ten minutes holds no worker slot
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.proto.methods import BACKUP, IMPORT_DOWNLOAD
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.standalone.processes import Airflow, until

REGIONS = 60
PAIRS = 600

DAG = """
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator

FOLDER = {folder!r}
GIVEN = {{"task_id": "task", "retries": 1, "retry_delay": timedelta(seconds=2)}}

with DAG("slots", schedule=None):
    BackupRawOperator(storage=FOLDER + "/slots", deferrable=True, **GIVEN)
with DAG("triggerer", schedule=None):
    BackupRawOperator(storage=FOLDER + "/triggerer", deferrable=True, **GIVEN)
with DAG("rolling", schedule=None):
    BackupRawOperator(storage=FOLDER + "/rolling", deferrable=True, **GIVEN)
for name, deferrable, seconds in (
    ("kill_deferred", True, None), ("kill_worker", False, None), ("worker", False, None),
    ("timeout_deferred", True, 15), ("timeout_worker", False, 15),
):
    with DAG(name, schedule=None):
        if seconds:
            GIVEN = {{**GIVEN, "retries": 0, "execution_timeout": timedelta(seconds=seconds)}}
        RestoreRawOperator(
            storage=FOLDER + "/whole", checkpoint_storage=FOLDER + "/" + name, tikv_conn_id="tikv_target",
            ratelimit=100, concurrency=1, deferrable=deferrable, **GIVEN
        )
with DAG("quick", schedule=None):
    @task(task_id="task")
    def quick():
        return "done"
    quick()
"""


class Proofs:
    """The scenarios, each of which tells what it saw.

    :param airflow: a whole Airflow.
    :param source: a cluster with pairs in many regions.
    :param target: an empty one.
    :param folder: where everything is.
    """

    def __init__(self, airflow: Airflow, source: ThreadedCluster, target: ThreadedCluster, folder: Path) -> None:
        self.airflow, self.source, self.target, self.folder = airflow, source, target, folder
        self.failures: list[str] = []

    def tell(self, what: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {what}\n")
        sys.stdout.flush()

    def check(self, holds: Any, what: str) -> None:
        self.tell(f"{'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.failures.append(what)

    def slow_backup(self, seconds: float) -> Rule:
        """Let a backup last as long: each region's answer is held back."""
        return self.source.faults.add(Rule(kind=Kind.SLOW, method=BACKUP, delay_s=seconds / (REGIONS / 3)))

    def owner_pid(self, lock: Path) -> int:
        """Who holds a lock."""

        def found() -> int:
            try:
                return int(json.loads(lock.read_text())["pid"])
            except (OSError, ValueError, KeyError):
                return 0

        return int(until(f"{lock} is held", found))

    def ended(self, task: str, limit_s: float = 180) -> str:
        """The state of a task when it is over."""
        return str(
            until(
                "the task ends", lambda: (s := self.airflow.state(task)) in ("success", "failed") and s, limit_s=limit_s
            )
        )

    def slots(self, seconds: float) -> None:
        """A deferred backup holds no worker slot, however long it lasts."""
        self.slow_backup(seconds)
        task = self.airflow.begin("slots")
        until("it is deferred", lambda: self.airflow.state(task) == "deferred")
        began, seen, last = time.monotonic(), [], {}
        quick = ""
        while self.airflow.state(task) == "deferred":
            last = self.airflow.pool()
            # The other task is one that runs meanwhile.
            if quick and self.airflow.state(quick) == "success":
                seen.append(last["running"] + last["queued"])
            elif not quick:
                quick = self.airflow.begin("quick")
            time.sleep(2)
        lasted = time.monotonic() - began
        state = self.ended(task)
        self.check(state == "success", f"slots: deferred for {lasted:.0f} s, then {state}")
        self.check(quick and self.airflow.state(quick) == "success", "slots: another task ran meanwhile")
        self.check(
            seen and not any(seen), f"slots: running+queued slots in {len(seen)} looks: {max(seen, default='none')}"
        )
        self.check(last.get("deferred") == 1, f"slots: the pool said {last}")
        self.check("Raw backup: " in self.airflow.log(task), "slots: progress is in the task's log")
        self.check(self.airflow.result(task)["total_kv"] == PAIRS, "slots: the result is that of a backup")

    def triggerer(self, how: signal.Signals = signal.SIGKILL) -> None:
        """A backup survives its triggerer."""
        name = "triggerer" if how is signal.SIGKILL else "rolling"
        slow = self.slow_backup(100)
        task = self.airflow.begin(name)
        place = self.folder / name
        until("it is deferred", lambda: self.airflow.state(task) == "deferred")
        pid = self.owner_pid(place / "backup.lock")
        # The second checkpoint, for the first may be an empty one.
        until("half a minute's work is saved", lambda: len(list((place / "backup.checkpoint").glob("*-*"))) >= 1)
        time.sleep(4)
        before = slow.hits
        self.airflow.end("triggerer", how)
        self.check(not _alive(pid), f"{name}: the process that backed up, {pid}, has ended by {how.name}")
        self.source.faults.clear()
        counted = self.slow_backup(0.02 * REGIONS / 3)
        killed = time.monotonic()
        self.airflow.start("triggerer")
        state = self.ended(task)
        self.check(state == "success", f"{name}: {state} {time.monotonic() - killed:.0f} s after the triggerer ended")
        done = counted.hits
        self.check(before and done < REGIONS, f"{name}: {before} of {REGIONS} regions before, {done} after")
        self.check(self.airflow.result(task)["total_kv"] == PAIRS, f"{name}: the backup is whole")
        said = [line for line in self.airflow.log(task).splitlines() if "finished by a try" in line]
        self.check(said, f"{name}: the log says {said[:1]}")

    def killed(self, deferrable: bool) -> None:
        """Marked as failed, a restore puts the cluster back within five seconds."""
        name = "kill_deferred" if deferrable else "kill_worker"
        stuck = self.target.faults.add(Rule(kind=Kind.HANG, method=IMPORT_DOWNLOAD))
        task = self.airflow.begin(name)
        until("it downloads", lambda: stuck.hits)
        until("its state is known", lambda: self.airflow.state(task) == ("deferred" if deferrable else "running"))
        self.check(not self.is_as_before(), f"{name}: schedulers are paused while it runs")
        at = time.monotonic()
        self.airflow.fail(task)
        until("the cluster is as before", self.is_as_before, limit_s=60, every_s=0.05)
        took = time.monotonic() - at
        # Airflow itself tells a worker at its next heartbeat, and a triggerer within two seconds.
        self.check(
            took < (15 if not deferrable else 7), f"{name}: cluster put back {took:.1f} s after it was marked failed"
        )
        self.check(self.airflow.state(task) == "failed", f"{name}: the task is failed")
        time.sleep(3)
        log = self.airflow.log(task)
        said = [line for line in log.splitlines() if "asked to stop" in line or "on_kill" in line]
        self.check(said, f"{name}: the log says {said}")

    def timeout(self, deferrable: bool) -> None:
        """After its execution timeout, a restore puts the cluster back."""
        name = "timeout_deferred" if deferrable else "timeout_worker"
        stuck = self.target.faults.add(Rule(kind=Kind.HANG, method=IMPORT_DOWNLOAD))
        task = self.airflow.begin(name)
        until("it downloads", lambda: stuck.hits)
        self.check(not self.is_as_before(), f"{name}: schedulers are paused while it runs")
        state = self.ended(task)
        at = time.monotonic()
        until("the cluster is as before", self.is_as_before, limit_s=60, every_s=0.05)
        took = time.monotonic() - at
        self.check(state == "failed", f"{name}: {state}")
        self.check(took < 5, f"{name}: cluster as before {took:.1f} s after the task was seen as failed")
        found = self.airflow.get(task)
        self.check(found["duration"] < 30, f"{name}: it took {found['duration']:.1f} s, of 15 s that it had")

    def worker(self) -> None:
        """The retry of a task whose process was killed goes on."""
        slow = self.target.faults.add(Rule(kind=Kind.DELAY, method=IMPORT_DOWNLOAD, delay_s=1.0))
        task = self.airflow.begin("worker")
        place = self.folder / "worker"
        until("it downloads", lambda: slow.hits)
        pid = int(until("its process is known", lambda: self.airflow.get(task)["pid"]))
        until("half a minute's work is saved", lambda: [p for p in place.rglob("*-*") if p.is_file()])
        time.sleep(2)
        before = slow.hits
        os.kill(pid, signal.SIGKILL)
        self.target.faults.clear()
        counted = self.target.faults.add(Rule(kind=Kind.DELAY, method=IMPORT_DOWNLOAD, delay_s=0.01))
        kept = self.airflow.kept(task)
        state = self.ended(task)
        self.check(state == "success", f"worker: {state} after kill -9 of {pid}")
        self.check(int(self.airflow.get(task)["try_number"]) == 2, "worker: by its second try")
        self.check(counted.hits < REGIONS, f"worker: {before} of {REGIONS} downloads before, {counted.hits} after")
        self.check(self.target.checksum() == self.source.checksum(), "worker: the target holds what the source holds")
        said = [line for line in self.airflow.log(task, 2).splitlines() if "Try 2 goes on" in line]
        self.check(said, f"worker: the log says {said[:1]}")
        self.check("checkpoint" in json.dumps(kept), f"worker: the state store said {json.dumps(kept)[:300]}")
        self.check(self.is_as_before(), "worker: the cluster is as before")

    def is_as_before(self) -> bool:
        return not self.target.apply(lambda c: c.pd.schedulers.paused())

    def whole(self) -> None:
        """Make the backup that the restores need."""
        from airflow_provider_tikvbr.cli.main import main

        done = main(
            ["backup", "raw", f"--pd={self.source.pd_address}", f"--storage={self.folder}/whole", "--log-level=error"]
        )
        self.check(done == 0, "a whole backup for the restores")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def main() -> int:
    """Run the scenarios that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the deferred backup lasts")
    parser.add_argument(
        "names",
        nargs="*",
        help="slots, triggerer, rolling, kill_deferred, kill_worker, timeout_deferred, timeout_worker, worker",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tikvbr-standalone-") as text:
        folder = Path(text)
        for name in ("home", "dags", "source", "target"):
            (folder / name).mkdir()
        (folder / "dags" / "proofs.py").write_text(DAG.format(folder=text))
        with (
            ThreadedCluster(data_dir=folder / "source", api_version=ApiVersion.V1, stores=3) as source,
            ThreadedCluster(data_dir=folder / "target", api_version=ApiVersion.V1, stores=3) as target,
        ):
            source.put((UserKey(b"key/%04d" % at), b"value %d" % at) for at in range(PAIRS))
            step = PAIRS // REGIONS
            source.apply(lambda c: c.split([UserKey(b"key/%04d" % at) for at in range(step, PAIRS, step)]))
            source.apply(lambda c: c.scatter())
            environment = {
                f"AIRFLOW_CONN_{name}": json.dumps({"conn_type": "tikv", "host": cluster.pd_address})
                for name, cluster in (("TIKV_DEFAULT", source), ("TIKV_TARGET", target))
            }
            airflow = Airflow(folder / "home", folder / "dags", environment)
            proofs = Proofs(airflow, source, target, folder)
            scenarios: dict[str, Callable[[], None]] = {
                "slots": lambda: proofs.slots(given.minutes * 60),
                "triggerer": proofs.triggerer,
                "rolling": lambda: proofs.triggerer(signal.SIGTERM),
                "kill_deferred": lambda: proofs.killed(True),
                "kill_worker": lambda: proofs.killed(False),
                "timeout_deferred": lambda: proofs.timeout(True),
                "timeout_worker": lambda: proofs.timeout(False),
                "worker": proofs.worker,
            }
            with airflow.up():
                proofs.whole()
                for name in given.names or scenarios:
                    try:
                        scenarios[name]()
                    except TimeoutError as err:
                        proofs.check(False, f"{name}: {err}")
                    source.faults.clear()
                    target.faults.clear()
                if proofs.failures:
                    for file in sorted((folder / "home").glob("*.out")):
                        proofs.tell(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}")
    sys.stdout.write(f"{len(proofs.failures)} failures\n")
    return 1 if proofs.failures else 0


if __name__ == "__main__":
    sys.exit(main())
