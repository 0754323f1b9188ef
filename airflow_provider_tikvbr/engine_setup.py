"""From the parameters of a task to a job that can run: read where it runs, in a worker or in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_tikvbr.connections import find_connection, storage_access
from airflow_provider_tikvbr.engine_jobs import Summary, TaskJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.masking import mask_environment, mask_hex, mask_pem, mask_url
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.parsing import parse_flag, parse_text
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.url import scheme_of

if TYPE_CHECKING:
    from airflow_provider_tikvbr.tikv.options import ClusterOptions

# The parameters that count instead of fields of the cluster's connection.
CLUSTER_PARAMETERS = (
    *("ca", "cert", "check_requirements", "grpc_keepalive_time", "grpc_keepalive_timeout"),
    *("grpc_max_recv_msg_size", "keyspace", "address_map"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A job that can run in any event loop; nothing is connected yet.

    :param job: what to do.
    :param cluster: how to reach the cluster.
    :param storage: opens the backup's storage.
    :param checkpoint_storage: opens the place for what is finished; None if that is kept beside the backup.
    """

    job: TaskJob
    cluster: ClusterOptions
    storage: Callable[[], Storage]
    checkpoint_storage: Callable[[], Storage] | None

    async def run(self, listener: Listener) -> Summary:
        """Connect the cluster, open the storages, do the job, and close everything.

        :raises TikvBrError: as the job does.
        """
        from airflow_provider_tikvbr.tikv.cluster import Cluster

        opened: list[Storage] = []
        try:
            for opener in filter(None, (self.storage, self.checkpoint_storage)):
                # In a thread: the libraries of the clouds are imported and read files here.
                storage = await asyncio.to_thread(opener)
                opened.append(storage)
                if storage.caution:
                    listener(Note(level="warning", message=storage.caution))
            async with await Cluster.connect(self.cluster) as cluster:
                return await self.job.run(
                    cluster, opened[0], listener, checkpoint_storage=opened[1] if len(opened) > 1 else None
                )
        finally:
            for storage in opened:
                await storage.close()


class JobSetup:
    """Reads the parameters of a task; it looks connections up, and so may block.

    :param parameters: by their names, as templates made them; ``key`` and ``crypter_key`` as their user wrote them.
    :param render: renders these two.
    :param warn: told what is not heeded.
    """

    def __init__(
        self, parameters: Mapping[str, Any], *, render: Callable[[Any], Any], warn: Callable[[str], None]
    ) -> None:
        self._parameters = parameters
        self._render = render
        self._warn = warn

    def prepare(self, kind: type[TaskJob], *, owner: str, retry_in_s: float | None) -> PreparedJob:
        """Read everything.

        :param kind: which job it is.
        :param owner: whose job it is, the same for every try.
        :param retry_in_s: when it will be tried again should it fail, in seconds from then; None if it will not be.
        :raises InvalidOptionError: a parameter, or a field of a connection, cannot be right.
        :raises AirflowNotFoundException: there is no such connection.
        """
        job = kind(self._parameters, crypter_key=self.crypter_key(), owner=owner, retry_in_s=retry_in_s)
        cluster = self.cluster_options()
        url = parse_text(self._parameters["storage"], parameter="storage")
        checkpoint = parse_text(self._parameters.get("checkpoint_storage"), parameter="checkpoint_storage").strip()
        mask_environment()
        return PreparedJob(
            job=job,
            cluster=cluster,
            storage=self._opener(url, conn_id=self._parameters["storage_conn_id"]),
            checkpoint_storage=self._checkpoint_opener(checkpoint, url) if checkpoint else None,
        )

    def crypter_key(self) -> str:
        """The key of the backup, which nothing will show from now on; empty if a file holds it, or none is given.

        :raises InvalidOptionError: there are several, or the connection holds none.
        :raises AirflowNotFoundException: there is no such connection.
        """
        key = str(self._render(self._parameters["crypter_key"]) or "")
        mask_hex(key)
        conn_id = parse_text(self._parameters["crypter_key_conn_id"], parameter="crypter_key_conn_id").strip()
        if not conn_id:
            return key
        if key or self._parameters["crypter_key_file"]:
            other = "crypter_key" if key else "crypter_key_file"
            raise InvalidOptionError(
                f"crypter_key_conn_id and {other} are both given: give one of them", parameter="crypter_key_conn_id"
            )
        conn = find_connection(conn_id, parameter="crypter_key_conn_id")
        extra = conn.extra_dejson if isinstance(conn.extra_dejson, dict) else {}
        key = str(conn.password or extra.get("crypter_key") or "")
        if not key:
            raise InvalidOptionError(
                f"crypter_key_conn_id names connection {conn_id}, which holds no key: give it there as the password, or"
                " as crypter_key of the extra",
                parameter="crypter_key_conn_id",
            )
        mask_hex(key)
        return key

    def cluster_options(self) -> ClusterOptions:
        """How to reach the cluster.

        :raises InvalidOptionError: a parameter, or a field of the connection, cannot be right.
        :raises AirflowNotFoundException: there is no such connection.
        """
        key = str(self._render(self._parameters["key"]) or "")
        if "-----BEGIN" in key:
            mask_pem(key)
        hook = TiKVHook(tikv_conn_id=self._parameters["tikv_conn_id"])
        return hook.cluster_options(key=key, **{name: self._parameters[name] for name in CLUSTER_PARAMETERS})

    def _checkpoint_opener(self, url: str, storage: str) -> Callable[[], Storage]:
        mask_url(url)
        # The connection is one of the backup's cloud; a directory, or another cloud, has nothing to do with it.
        same = scheme_of(url) == scheme_of(storage)
        try:
            return self._opener(url, conn_id=self._parameters["storage_conn_id"] if same else "")
        except InvalidOptionError as err:
            raise InvalidOptionError(f"checkpoint_storage: {err}", parameter="checkpoint_storage") from err

    def _opener(self, url: str, *, conn_id: object) -> Callable[[], Storage]:
        send = parse_flag(
            self._parameters["send_credentials_to_tikv"], parameter="send_credentials_to_tikv", default=True
        )
        anonymous = parse_flag(self._parameters["no_credentials"], parameter="no_credentials")
        credentials = None
        if access := storage_access(conn_id, url):
            if anonymous:
                raise InvalidOptionError(
                    "no_credentials and storage_conn_id are both given: leave one of them out",
                    parameter="no_credentials",
                )
            url, credentials = access.complete(url), access.credentials
            if access.unread:
                self._warn(
                    f"Of the connection {conn_id} (storage_conn_id), these fields are not heeded: {', '.join(access.unread)}"
                )
        return lambda: open_storage(
            url,
            credentials=credentials,
            send_credentials=send,
            environment_first=True,
            no_credentials=anonymous,
        )
