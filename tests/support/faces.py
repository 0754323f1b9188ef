"""One job by each of the three faces - operator, engine, command - and what the servers and the user saw of it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc.aio
import httpx
import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.cli.main import flag_of, main
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.logfile import LOGGER, logging_to, parse_level
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.events import Event, Note
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.parsing import parse_duration, parse_whole
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.addresses import AddressMap
from airflow_provider_tikvbr.tikv.channel import Connection
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions, parse_keyspace, parse_pd
from airflow_provider_tikvbr.tikv.redaction import redacting

FACES = ("operator", "engine", "command")
JOBS = ("backup", "restore", "checksum")

OPERATORS: Mapping[str, Any] = {"backup": BackupRawOperator, "restore": RestoreRawOperator, "checksum": ChecksumSensor}
READERS: Mapping[str, Callable[..., Any]] = {
    "backup": backup_options,
    "restore": restore_options,
    "checksum": checksum_options,
}
WORK: Mapping[str, Callable[..., Any]] = {"backup": backup, "restore": restore, "checksum": verify_backup}
COMMANDS = {"backup": ("backup", "raw"), "restore": ("restore", "raw"), "checksum": ("debug", "checksum")}

# Options of the storage that are flags of the command, and parameters of the URL elsewhere.
STORAGE_FLAGS = ("s3_", "gcs_", "azblob_")


@dataclass
class Seen:
    """What one run showed."""

    started: float = field(default_factory=time.time)
    requests: list[tuple[Method[Any, Any], Any]] = field(default_factory=list)
    at_once: Counter[str] = field(default_factory=Counter)
    channels: list[dict[str, Any]] = field(default_factory=list)
    http: list[tuple[str, str]] = field(default_factory=list)
    ok: bool = False
    text: str = ""
    log: str = ""

    def of(self, method: Method[Any, Any]) -> list[Any]:
        """The requests of one method, in order."""
        return [request for of, request in self.requests if of is method]


@contextlib.contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Record what every connection of this process sends while the block runs."""
    seen = Seen()
    running: Counter[str] = Counter()
    with monkeypatch.context() as patch:

        def tap(name: str) -> None:
            real: Callable[..., Any] = getattr(Connection, name)

            def note(method: Method[Any, Any], request: Message) -> None:
                copy = type(request)()
                copy.CopyFrom(request)
                seen.requests.append((method, copy))

            async def tapped(self: Connection, method: Method[Any, Any], request: Message, **more: Any) -> Any:
                note(method, request)
                running[method.path] += 1
                seen.at_once[method.path] = max(seen.at_once[method.path], running[method.path])
                try:
                    return await real(self, method, request, **more)
                finally:
                    running[method.path] -= 1

            def tapped_stream(self: Connection, method: Method[Any, Any], request: Message, **more: Any) -> Any:
                note(method, request)
                return real(self, method, request, **more)

            patch.setattr(Connection, name, tapped if inspect.iscoroutinefunction(real) else tapped_stream)

        def tap_channel(name: str) -> None:
            real: Callable[..., Any] = getattr(grpc.aio, name)

            def tapped(target: str, *args: Any, **more: Any) -> Any:
                seen.channels.append({"target": target, **dict(more["options"])})
                return real(target, *args, **more)

            patch.setattr(grpc.aio, name, tapped)

        for name in ("call", "stream", "exchange"):
            tap(name)
        for name in ("insecure_channel", "secure_channel"):
            tap_channel(name)
        real_send = httpx.AsyncClient.send

        async def send(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
            seen.http.append((request.method, request.url.path))
            return await real_send(self, request, **more)

        patch.setattr(httpx.AsyncClient, "send", send)
        yield seen


def flag(option: str) -> str:
    """The flag of an option."""
    service, _, parameter = option.partition("_")
    return f"--{service}.{parameter.replace('_', '-')}" if option.startswith(STORAGE_FLAGS) else flag_of(option)


def with_parameters(storage: str, options: dict[str, Any]) -> str:
    """Put options of the storage into its URL, and take them out of the others."""
    for name in [name for name in options if name.startswith(STORAGE_FLAGS)]:
        parameter = name.partition("_")[2].replace("_", "-")
        storage += f"{'&' if '?' in storage else '?'}{parameter}={quote(str(options.pop(name)), safe='')}"
    return storage


def by_operator(job: str, pd: str, storage: str, options: dict[str, Any], seen: Seen) -> None:
    """Run an operator as Airflow does: every option is a template, which is rendered first."""
    storage = with_parameters(storage, options)
    given = {name: "{{ params." + name + " }}" for name in options}
    task = OPERATORS[job](task_id=job, storage=storage, **given)
    context: Any = {"params": options}
    task.render_template_fields(context)
    seen.text += repr(task.execute(context))


def by_engine(job: str, pd: str, storage: str, options: dict[str, Any], seen: Seen) -> None:
    """Run the engine as a program of one's own does."""
    storage = with_parameters(storage, options)
    take = options.pop
    tls = TlsOptions.load(ca=take("ca", None), cert=take("cert", None), key=take("key", None))
    keepalive: dict[str, Any] = {}
    for name, field_name in (("time", "keepalive_time_s"), ("timeout", "keepalive_timeout_s")):
        if f"grpc_keepalive_{name}" in options:
            keepalive[field_name] = parse_duration(take(f"grpc_keepalive_{name}"), parameter=name)
    size = parse_whole(take("grpc_max_recv_msg_size", -1), parameter="size", default=-1, minimum=-1)
    keyspace_id, keyspace = parse_keyspace(take("keyspace", None))
    cluster_options = ClusterOptions(
        pd=parse_pd(pd, tls=tls is not None),
        tls=tls,
        grpc=GrpcOptions(max_receive_bytes=size, **keepalive),
        keyspace_id=keyspace_id or 0,
        keyspace=keyspace,
        address_map=AddressMap.parse(take("address_map", None)),
        check_requirements=take("check_requirements", True),
    )
    storage_options = {
        "send_credentials": take("send_credentials_to_tikv", True),
        "no_credentials": take("no_credentials", False),
    }
    kept = take("checkpoint_storage", None)
    log_file, redact = take("log_file", None), take("redact_log", False)
    level, log_format = parse_level(take("log_level", "info")), take("log_format", "text")
    read = READERS[job](**options)

    def listener(event: Event) -> None:
        if isinstance(event, Note):
            LOGGER.info(event.message)

    async def run() -> Any:
        with redacting(redact):
            async with (
                open_storage(storage, **storage_options) as opened,
                await Cluster.connect(cluster_options) as cluster,
            ):
                if kept is None:
                    summary = await WORK[job](cluster, opened, read, listener)
                else:
                    async with open_storage(kept) as place:
                        summary = await WORK[job](cluster, opened, read, listener, checkpoint_storage=place)
                return summary.line(), summary.as_dict()

    log = logging_to(Path(log_file), level, log_format=log_format) if log_file else contextlib.nullcontext()
    with log:
        line, found = asyncio.run(run())
        LOGGER.info(line)
    seen.text += repr(found)


def by_command(job: str, pd: str, storage: str, options: dict[str, Any], seen: Seen) -> None:
    """Run the command line, in this process."""
    args = [*COMMANDS[job], f"--pd={pd}", f"--storage={storage}"]
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        args.append(f"{flag(name)}={text}")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    seen.text += out.getvalue() + err.getvalue()
    if code:
        raise TikvBrError(err.getvalue())


RUN: Mapping[str, Callable[..., None]] = {"operator": by_operator, "engine": by_engine, "command": by_command}


def run(
    face: str, job: str, pd: str, storage: str, options: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Seen:
    """Run a job.

    :param face: which face does it.
    :param pd: the cluster's PD; for the operator, the connection ``tikv_default`` has to lead there.
    :param options: the job's, by their name in the engine.
    """
    with watching(monkeypatch) as seen:
        try:
            RUN[face](job, pd, storage, dict(options), seen)
            seen.ok = True
        except Exception as err:
            seen.text += str(err)
    log_file = options.get("log_file")
    if log_file and Path(log_file).exists():
        seen.log = Path(log_file).read_text()
    return seen
