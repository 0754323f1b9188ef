"""Every gRPC method that this package calls or serves: its path, its messages and whether it streams.

The client builds its calls from this table and the embedded cluster its handlers, so the two cannot drift apart.
Paths are those of PD's and TiKV's services; ``/backup.Backup/backup`` really is spelled in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from airflow_provider_tikvbr.proto import (
    brpb_pb2,
    healthpb_pb2,
    import_sstpb_pb2,
    keyspacepb_pb2,
    kvrpcpb_pb2,
    pdpb_pb2,
    tikvpb_pb2,
)

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Resp]):
    """One gRPC method.

    :param path: the full path, ``/package.Service/Method``.
    :param request: class of the request message.
    :param response: class of the response message.
    :param client_streams: whether the client sends a stream of requests.
    :param server_streams: whether the server answers with a stream of responses.
    """

    path: str
    request: type[Req]
    response: type[Resp]
    client_streams: bool = False
    server_streams: bool = False

    @property
    def service(self) -> str:
        """The service's full name, such as ``pdpb.PD``."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """The method's bare name, such as ``GetMembers``."""
        return self.path.split("/")[2]


PD_GET_MEMBERS = Method("/pdpb.PD/GetMembers", pdpb_pb2.GetMembersRequest, pdpb_pb2.GetMembersResponse)
PD_GET_CLUSTER_INFO = Method("/pdpb.PD/GetClusterInfo", pdpb_pb2.GetClusterInfoRequest, pdpb_pb2.GetClusterInfoResponse)
PD_GET_REGION = Method("/pdpb.PD/GetRegion", pdpb_pb2.GetRegionRequest, pdpb_pb2.GetRegionResponse)
PD_GET_PREV_REGION = Method("/pdpb.PD/GetPrevRegion", pdpb_pb2.GetRegionRequest, pdpb_pb2.GetRegionResponse)
PD_GET_REGION_BY_ID = Method("/pdpb.PD/GetRegionByID", pdpb_pb2.GetRegionByIDRequest, pdpb_pb2.GetRegionResponse)
PD_SCAN_REGIONS = Method("/pdpb.PD/ScanRegions", pdpb_pb2.ScanRegionsRequest, pdpb_pb2.ScanRegionsResponse)
PD_BATCH_SCAN_REGIONS = Method(
    "/pdpb.PD/BatchScanRegions", pdpb_pb2.BatchScanRegionsRequest, pdpb_pb2.BatchScanRegionsResponse
)
PD_GET_STORE = Method("/pdpb.PD/GetStore", pdpb_pb2.GetStoreRequest, pdpb_pb2.GetStoreResponse)
PD_GET_ALL_STORES = Method("/pdpb.PD/GetAllStores", pdpb_pb2.GetAllStoresRequest, pdpb_pb2.GetAllStoresResponse)
PD_GET_GC_SAFE_POINT = Method(
    "/pdpb.PD/GetGCSafePoint", pdpb_pb2.GetGCSafePointRequest, pdpb_pb2.GetGCSafePointResponse
)
PD_UPDATE_GC_SAFE_POINT = Method(
    "/pdpb.PD/UpdateGCSafePoint", pdpb_pb2.UpdateGCSafePointRequest, pdpb_pb2.UpdateGCSafePointResponse
)
PD_UPDATE_SERVICE_GC_SAFE_POINT = Method(
    "/pdpb.PD/UpdateServiceGCSafePoint",
    pdpb_pb2.UpdateServiceGCSafePointRequest,
    pdpb_pb2.UpdateServiceGCSafePointResponse,
)
PD_SCATTER_REGION = Method("/pdpb.PD/ScatterRegion", pdpb_pb2.ScatterRegionRequest, pdpb_pb2.ScatterRegionResponse)
PD_GET_OPERATOR = Method("/pdpb.PD/GetOperator", pdpb_pb2.GetOperatorRequest, pdpb_pb2.GetOperatorResponse)
PD_SPLIT_REGIONS = Method("/pdpb.PD/SplitRegions", pdpb_pb2.SplitRegionsRequest, pdpb_pb2.SplitRegionsResponse)
PD_TSO = Method("/pdpb.PD/Tso", pdpb_pb2.TsoRequest, pdpb_pb2.TsoResponse, client_streams=True, server_streams=True)
KEYSPACE_LOAD = Method(
    "/keyspacepb.Keyspace/LoadKeyspace", keyspacepb_pb2.LoadKeyspaceRequest, keyspacepb_pb2.LoadKeyspaceResponse
)
KEYSPACE_LOAD_BY_ID = Method(
    "/keyspacepb.Keyspace/LoadKeyspaceByID",
    keyspacepb_pb2.LoadKeyspaceByIDRequest,
    keyspacepb_pb2.LoadKeyspaceResponse,
)
KEYSPACE_GET_ALL = Method(
    "/keyspacepb.Keyspace/GetAllKeyspaces",
    keyspacepb_pb2.GetAllKeyspacesRequest,
    keyspacepb_pb2.GetAllKeyspacesResponse,
)
HEALTH_CHECK = Method("/grpc.health.v1.Health/Check", healthpb_pb2.HealthCheckRequest, healthpb_pb2.HealthCheckResponse)
KV_RAW_GET = Method("/tikvpb.Tikv/RawGet", kvrpcpb_pb2.RawGetRequest, kvrpcpb_pb2.RawGetResponse)
KV_RAW_BATCH_GET = Method("/tikvpb.Tikv/RawBatchGet", kvrpcpb_pb2.RawBatchGetRequest, kvrpcpb_pb2.RawBatchGetResponse)
KV_RAW_PUT = Method("/tikvpb.Tikv/RawPut", kvrpcpb_pb2.RawPutRequest, kvrpcpb_pb2.RawPutResponse)
KV_RAW_BATCH_PUT = Method("/tikvpb.Tikv/RawBatchPut", kvrpcpb_pb2.RawBatchPutRequest, kvrpcpb_pb2.RawBatchPutResponse)
KV_RAW_DELETE = Method("/tikvpb.Tikv/RawDelete", kvrpcpb_pb2.RawDeleteRequest, kvrpcpb_pb2.RawDeleteResponse)
KV_RAW_BATCH_DELETE = Method(
    "/tikvpb.Tikv/RawBatchDelete", kvrpcpb_pb2.RawBatchDeleteRequest, kvrpcpb_pb2.RawBatchDeleteResponse
)
KV_RAW_SCAN = Method("/tikvpb.Tikv/RawScan", kvrpcpb_pb2.RawScanRequest, kvrpcpb_pb2.RawScanResponse)
KV_RAW_DELETE_RANGE = Method(
    "/tikvpb.Tikv/RawDeleteRange", kvrpcpb_pb2.RawDeleteRangeRequest, kvrpcpb_pb2.RawDeleteRangeResponse
)
KV_RAW_BATCH_SCAN = Method(
    "/tikvpb.Tikv/RawBatchScan", kvrpcpb_pb2.RawBatchScanRequest, kvrpcpb_pb2.RawBatchScanResponse
)
KV_RAW_GET_KEY_TTL = Method(
    "/tikvpb.Tikv/RawGetKeyTTL", kvrpcpb_pb2.RawGetKeyTTLRequest, kvrpcpb_pb2.RawGetKeyTTLResponse
)
KV_RAW_COMPARE_AND_SWAP = Method(
    "/tikvpb.Tikv/RawCompareAndSwap", kvrpcpb_pb2.RawCASRequest, kvrpcpb_pb2.RawCASResponse
)
KV_RAW_CHECKSUM = Method("/tikvpb.Tikv/RawChecksum", kvrpcpb_pb2.RawChecksumRequest, kvrpcpb_pb2.RawChecksumResponse)
KV_RAW_COPROCESSOR = Method(
    "/tikvpb.Tikv/RawCoprocessor", kvrpcpb_pb2.RawCoprocessorRequest, kvrpcpb_pb2.RawCoprocessorResponse
)
KV_SPLIT_REGION = Method("/tikvpb.Tikv/SplitRegion", kvrpcpb_pb2.SplitRegionRequest, kvrpcpb_pb2.SplitRegionResponse)
KV_GET_STORE_SAFE_TS = Method(
    "/tikvpb.Tikv/GetStoreSafeTS", kvrpcpb_pb2.StoreSafeTSRequest, kvrpcpb_pb2.StoreSafeTSResponse
)
KV_BATCH_COMMANDS = Method(
    "/tikvpb.Tikv/BatchCommands",
    tikvpb_pb2.BatchCommandsRequest,
    tikvpb_pb2.BatchCommandsResponse,
    client_streams=True,
    server_streams=True,
)
BACKUP = Method("/backup.Backup/backup", brpb_pb2.BackupRequest, brpb_pb2.BackupResponse, server_streams=True)
IMPORT_SWITCH_MODE = Method(
    "/import_sstpb.ImportSST/SwitchMode", import_sstpb_pb2.SwitchModeRequest, import_sstpb_pb2.SwitchModeResponse
)
IMPORT_SET_DOWNLOAD_SPEED_LIMIT = Method(
    "/import_sstpb.ImportSST/SetDownloadSpeedLimit",
    import_sstpb_pb2.SetDownloadSpeedLimitRequest,
    import_sstpb_pb2.SetDownloadSpeedLimitResponse,
)
IMPORT_DOWNLOAD = Method(
    "/import_sstpb.ImportSST/Download", import_sstpb_pb2.DownloadRequest, import_sstpb_pb2.DownloadResponse
)
IMPORT_INGEST = Method(
    "/import_sstpb.ImportSST/Ingest", import_sstpb_pb2.IngestRequest, import_sstpb_pb2.IngestResponse
)
IMPORT_MULTI_INGEST = Method(
    "/import_sstpb.ImportSST/MultiIngest", import_sstpb_pb2.MultiIngestRequest, import_sstpb_pb2.IngestResponse
)
