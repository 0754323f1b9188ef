"""All that one embedded store serves over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.backup_service import BackupService
from airflow_provider_tikvbr.embedded.batch import BatchCommands
from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.fault_storage import StoreFiles
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.embedded.import_service import ImportService
from airflow_provider_tikvbr.embedded.serving import Handler, generic_handlers
from airflow_provider_tikvbr.embedded.tikv_service import TikvService
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.proto.methods import Method


def store_handlers(
    topology: Topology, store_id: int, engines: Mapping[int, StoreEngine], faults: Faults
) -> tuple[grpc.GenericRpcHandler, ...]:
    """The gRPC handlers of one store.

    :param topology: where regions and leaders stand.
    :param store_id: the store that serves.
    :param engines: the RocksDB of every store, also of those that do not serve just now: they hold the data of their
        peers all the same.
    :param faults: what goes wrong with the files of backups.
    """
    files = StoreFiles(faults=faults, store_id=store_id)
    tikv = TikvService(topology=topology, store_id=store_id, engines=engines)
    table: dict[Method[Any, Any], Handler] = {
        **tikv.handlers(),
        methods.KV_BATCH_COMMANDS: BatchCommands(tikv).stream,
        **BackupService(topology=topology, store_id=store_id, engines=engines, files=files).handlers(),
        **ImportService(topology=topology, store_id=store_id, engines=engines, files=files).handlers(),
    }
    return generic_handlers(table)
