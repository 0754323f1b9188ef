"""``tikvbr demo``: the whole job on one machine, with two embedded clusters and a real Airflow.

A V1 cluster gets the data of a backup that a real TiKV cluster made; the DAG ``tikv_convert_v1_to_v2`` moves them into a
V2 cluster; then both clusters are counted and compared.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import airflow_provider_tikvbr
from airflow_provider_tikvbr.cli.processes import Process, ProcessError, tail
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.rawbr.checksum import cluster_checksum, verify_backup
from airflow_provider_tikvbr.rawbr.events import ignore
from airflow_provider_tikvbr.rawbr.options import ChecksumOptions, RestoreOptions
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.rawbr.summary import Checksum, RestoreSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING
from airflow_provider_tikvbr.tikv.options import ClusterOptions

DAG_ID = "tikv_convert_v1_to_v2"
MARKER = "tikvbr-demo"
STEPS = 5
STORES = 3
START_TIMEOUT_S = 60.0
# The backup is small: without this, all of it would be one region on one store.
REGION_BYTES = 100_000
AIRFLOW_TIMEOUT_S = 600.0

ENV_HEAD = r"""# Settings of the demo's Airflow: source this file. Those of any other Airflow are dropped.
unset $(env | sed -n 's/^\(AIRFLOW[A-Za-z0-9_]*\)=.*/\1/p')
"""

_SUMMARY = re.compile(r'\["(Raw \w+) (\w+) summary"\](.*)')
_FIELD = re.compile(r"\[([\w()-]+)=([^\]]*)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was counted at the end.

    :param source: the V1 cluster as it is.
    :param converted: the V1 cluster, counted in the form of V2.
    :param target: the V2 cluster.
    """

    source: Checksum
    converted: Checksum
    target: Checksum

    @property
    def good(self) -> bool:
        """Whether everything has arrived."""
        return self.converted == self.target and self.source.total_kvs == self.target.total_kvs > 0


def demo(work_dir: Path, golden: Path) -> int:
    """Run the demo.

    :param work_dir: where everything goes; an earlier demo's is begun anew, another directory is refused.
    :param golden: a backup of API V1 that becomes the first cluster's data.
    :return: the exit code: 0 if the V2 cluster holds what the V1 cluster holds.
    """
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    # To be stopped by a signal has to clean up just as ctrl-C has.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with prepared(work_dir.absolute()) as work:
            result = Story(work=work, golden=golden.absolute(), console=console).tell()
    except KeyboardInterrupt:
        console.print("\n[bold red]Stopped.[/] Everything that was started is stopped too.")
        return 130
    except ProcessError as err:
        console.print(f"\n[bold red]FAILED[/] {escape(str(err))} The end of {escape(str(err.log))}:")
        console.print("\n".join(f"    {line}" for line in tail(err.log)), markup=False)
        return 1
    except (TikvBrError, OSError) as err:
        console.print(f"\n[bold red]FAILED[/] {escape(str(err))}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    took = time.monotonic() - began
    if not result.good:
        console.print(
            f"\n[bold red]FAILED[/] The V2 cluster ({result.target}) does not hold what the V1 cluster holds"
            f" ({result.converted} in the form of V2)."
        )
        return 1
    console.print(
        f"\n[bold green]OK[/] The V2 cluster holds the {result.target.total_kvs:,} pairs of the V1 cluster: number,"
        f" bytes and checksum are equal. ({took:.0f} s)"
    )
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


class Story:
    """The demo, step by step.

    :param work: an empty directory.
    :param golden: the backup that is the first cluster's data.
    :param console: where to tell it.
    """

    def __init__(self, *, work: Path, golden: Path, console: Console) -> None:
        self._work = work
        self._golden = golden
        self._console = console
        self._step = 0
        self._pd: dict[str, str] = {}
        self._dags = Path(airflow_provider_tikvbr.__file__).parents[1] / "dags"

    def tell(self) -> Result:
        """Tell all of it.

        :raises ProcessError: Airflow or a cluster failed.
        :raises TikvBrError: the engine failed.
        """
        for needed in (self._golden / "backupmeta", self._dags / f"{DAG_ID}.py"):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} is missing: run the demo in a checkout of the project.")
        with ExitStack() as stack:
            for api_version in ("v1", "v2"):
                self._begin(f"Start an embedded TiKV cluster of API {api_version.upper()} with {STORES} stores")
                self._pd[api_version] = stack.enter_context(self._cluster(api_version))
                self._tell(f"PD at {self._pd[api_version]}, data in {self._shown(self._work / api_version)}")
            self._begin(f"Restore {self._shown(self._golden)}, a backup of a real TiKV cluster, into the V1 cluster")
            self._summary("restore", asyncio.run(self._seed()).line())
            self._begin(f"Run the DAG {DAG_ID} in Airflow: back up as V2, restore, verify")
            self._airflow()
            self._begin("Count both clusters")
            result = asyncio.run(self._count())
        self._table(result)
        self._next()
        return result

    # --- the steps ---

    @contextmanager
    def _cluster(self, api_version: str) -> Iterator[str]:
        command = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main", "embedded"]
        command += ["--api-version", api_version, "--stores", str(STORES), "--replicas", "1", "--pd-port", "0"]
        command += ["--data", str(self._work / api_version)]
        log = self._work / "logs" / f"cluster-{api_version}.log"
        with Process(f"The {api_version.upper()} cluster", command, log=log) as process:
            yield process.wait_for(r"^ready pd=(\S+)", timeout_s=START_TIMEOUT_S)[1]

    async def _seed(self) -> RestoreSummary:
        storage = open_storage(str(self._golden))
        async with await Cluster.connect(self._options("v1")) as cluster:
            return await restore(
                cluster, storage, RestoreOptions(checksum=True, merge_region_size=REGION_BYTES), ignore
            )

    def _airflow(self) -> None:
        # Settings of another Airflow may name its database: none of them may reach this one.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        env = {**outside, **self._airflow_env()}
        log = self._work / "logs" / "airflow.log"
        self._tell(f"Airflow's own log: {self._shown(log)}")
        airflow = [sys.executable, "-m", "airflow"]
        migrate = self._work / "logs" / "airflow-db-migrate.log"
        with Process("airflow db migrate", [*airflow, "db", "migrate"], log=migrate, env=env) as process:
            process.wait(timeout_s=AIRFLOW_TIMEOUT_S)
        self._tell("airflow db migrate: done")
        conf = json.dumps({"storage": str(self._work / "backup"), "merge_region_size_bytes": REGION_BYTES})
        self._tell(f"airflow dags test {DAG_ID} -c {shlex.quote(conf)}")
        command = [*airflow, "dags", "test", DAG_ID, "-c", conf]
        told: list[str] = []

        def on_line(line: str) -> None:
            if found := _SUMMARY.search(line):
                told.append(found[1])
                self._summary({"Raw checksum": "verify"}.get(found[1], found[1].removeprefix("Raw ")), found[0])

        with Process("airflow dags test", command, log=log, env=env) as process:
            process.wait(timeout_s=AIRFLOW_TIMEOUT_S, on_line=on_line)
        if told != ["Raw backup", "Raw restore", "Raw checksum"]:
            raise ProcessError(
                f"The DAG's tasks told {told or 'nothing'}, not a backup, a restore and a checksum.", log=log
            )

    async def _count(self) -> Result:
        (backup,) = (self._work / "backup").iterdir()
        storage = open_storage(str(backup))
        options = ChecksumOptions()
        async with await Cluster.connect(self._options("v1")) as cluster:
            everything = cluster.codec.api_range(EVERYTHING)
            source = await cluster_checksum(
                cluster, everything, concurrency=options.concurrency, listener=ignore, step="Raw checksum"
            )
            converted = await verify_backup(cluster, storage, options, ignore)
        async with await Cluster.connect(self._options("v2")) as cluster:
            target = await verify_backup(cluster, storage, options, ignore)
        return Result(source=source, converted=converted.actual, target=target.actual)

    # --- what they share ---

    def _options(self, api_version: str) -> ClusterOptions:
        return ClusterOptions(pd=(self._pd[api_version],))

    def _airflow_env(self) -> Mapping[str, str]:
        return {
            "AIRFLOW_HOME": str(self._work / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            **{
                f"AIRFLOW_CONN_TIKV_{api_version.upper()}": json.dumps(
                    {"conn_type": "tikv", "host": pd, "extra": {"api_version": api_version}}
                )
                for api_version, pd in self._pd.items()
            },
        }

    # --- telling ---

    def _begin(self, what: str) -> None:
        self._step += 1
        self._console.print(f"[bold cyan]\\[{self._step}/{STEPS}][/] [bold]{escape(what)}[/]")

    def _tell(self, what: str) -> None:
        self._console.print(f"      {what}", markup=False, style="dim")

    def _summary(self, step: str, line: str) -> None:
        self._console.print(f"      [green]{step:<8}[/]", end="")
        self._console.print("  ".join(f"{name}={value}" for name, value in _FIELD.findall(line)), markup=False)

    def _table(self, result: Result) -> None:
        table = Table(title="What the clusters hold", title_justify="left")
        table.add_column("", no_wrap=True)
        for column in ("pairs", "bytes", "crc64xor"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, found in (
            ("V1 cluster", result.source),
            ("V1 cluster, as V2", result.converted),
            ("V2 cluster", result.target),
        ):
            table.add_row(name, f"{found.total_kvs:,}", f"{found.total_bytes:,}", str(found.crc64xor))
        self._console.print()
        self._console.print(table)
        self._tell("V2 adds four bytes to each key, so a V1 cluster is also counted as V2 would write it.")

    def _next(self) -> None:
        env = self._work / "env.sh"
        env.write_text(ENV_HEAD + "\n".join(self._exports()) + "\n")
        tikvbr = self._typed(Path(sys.executable).with_name("tikvbr"))
        self._console.print("\n[bold]What to do next[/]")
        self._console.print(
            "  The clusters are stopped; their data stay. To look around, start them again, each in a shell:"
        )
        for api_version, pd in self._pd.items():
            self._console.print(
                f"    {tikvbr} embedded --api-version {api_version} --stores {STORES} --replicas 1"
                f" --pd-port {pd.rpartition(':')[2]} --data {self._typed(self._work / api_version)}",
                markup=False,
            )
        self._console.print(
            "  Airflow's UI with this project's DAGs, at http://localhost:8080, without a password (ctrl-C ends it):"
        )
        self._console.print(f"    source {self._typed(env)} && airflow standalone", markup=False)
        self._console.print("  The same at the terminal:")
        self._console.print(
            f"    {tikvbr} backup raw --pd {self._pd['v2']} --storage /tmp/tikv-backup --checksum", markup=False
        )

    def _exports(self) -> Iterator[str]:
        """The lines of the file that a shell reads for Airflow's UI."""
        # "airflow standalone" starts "airflow" by its bare name.
        yield f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
        ui = {"AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"}
        for name, value in {**self._airflow_env(), **ui}.items():
            yield f"export {name}={shlex.quote(value)}"

    def _typed(self, path: Path) -> str:
        """A path as one types it in a shell."""
        return shlex.quote(self._shown(path))

    def _shown(self, path: Path) -> str:
        """A path, relative to where the user is if it lies below."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)


@contextmanager
def prepared(work: Path) -> Iterator[Path]:
    """Make the directory, or empty the one that an earlier demo left, and keep other demos out of it.

    :raises FileExistsError: it is somebody else's directory, or another demo runs in it.
    """
    marker = work / MARKER
    if work.exists() and not marker.exists() and any(work.iterdir()):
        raise FileExistsError(f"{work} is not empty and not a demo's: give another directory.")
    work.mkdir(parents=True, exist_ok=True)
    with marker.open("a") as lock:
        _lock(lock, work)
        for entry in work.iterdir():
            if entry == marker:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        yield work


def _lock(file: IO[str], work: Path) -> None:
    try:
        # The kernel drops it with the process, however that ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"Another demo is running in {work}: wait for it, or give another directory.") from None
