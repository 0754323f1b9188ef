"""The request that makes a store back up what it leads."""

from __future__ import annotations

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.meta import RAW_CF
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion


def backup_request(cluster: Cluster, options: BackupOptions, dst: ApiVersion) -> brpb_pb2.BackupRequest:
    """What tikv-br sends in raw mode; the same for the whole range and for each gap. The storage is filled in later.

    :param dst: API version of the backup.
    """
    keys = cluster.codec.api_range(options.keys)
    return brpb_pb2.BackupRequest(
        cluster_id=cluster.cluster_id,
        start_key=keys.start,
        end_key=keys.end,
        rate_limit=options.rate_limit,
        concurrency=options.concurrency,
        is_raw_kv=True,
        cf=RAW_CF,
        compression_type=int(options.compression),  # type: ignore[arg-type]
        compression_level=options.compression_level,
        cipher_info=options.cipher.message(),
        dst_api_version=int(dst),  # type: ignore[arg-type]
    )
