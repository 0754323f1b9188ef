from airflow_provider_tikvbr.proto import brpb_pb2 as _brpb_pb2
from airflow_provider_tikvbr.proto import errorpb_pb2 as _errorpb_pb2
from airflow_provider_tikvbr.proto import kvrpcpb_pb2 as _kvrpcpb_pb2
from airflow_provider_tikvbr.proto import metapb_pb2 as _metapb_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SwitchMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    Normal: _ClassVar[SwitchMode]
    Import: _ClassVar[SwitchMode]
Normal: SwitchMode
Import: SwitchMode

class Range(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: bytes
    end: bytes
    def __init__(self, start: _Optional[bytes] = ..., end: _Optional[bytes] = ...) -> None: ...

class SwitchModeRequest(_message.Message):
    __slots__ = ("mode", "ranges")
    MODE_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    mode: SwitchMode
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, mode: _Optional[_Union[SwitchMode, str]] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class SwitchModeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SSTMeta(_message.Message):
    __slots__ = ("uuid", "range", "crc32", "length", "cf_name", "region_id", "region_epoch", "end_key_exclusive", "total_kvs", "total_bytes", "api_version", "cipher_iv")
    UUID_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CF_NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    END_KEY_EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_KVS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    CIPHER_IV_FIELD_NUMBER: _ClassVar[int]
    uuid: bytes
    range: Range
    crc32: int
    length: int
    cf_name: str
    region_id: int
    region_epoch: _metapb_pb2.RegionEpoch
    end_key_exclusive: bool
    total_kvs: int
    total_bytes: int
    api_version: _kvrpcpb_pb2.APIVersion
    cipher_iv: bytes
    def __init__(self, uuid: _Optional[bytes] = ..., range: _Optional[_Union[Range, _Mapping]] = ..., crc32: _Optional[int] = ..., length: _Optional[int] = ..., cf_name: _Optional[str] = ..., region_id: _Optional[int] = ..., region_epoch: _Optional[_Union[_metapb_pb2.RegionEpoch, _Mapping]] = ..., end_key_exclusive: bool = ..., total_kvs: _Optional[int] = ..., total_bytes: _Optional[int] = ..., api_version: _Optional[_Union[_kvrpcpb_pb2.APIVersion, str]] = ..., cipher_iv: _Optional[bytes] = ...) -> None: ...

class RewriteRule(_message.Message):
    __slots__ = ("old_key_prefix", "new_key_prefix", "new_timestamp")
    OLD_KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    NEW_KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    NEW_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    old_key_prefix: bytes
    new_key_prefix: bytes
    new_timestamp: int
    def __init__(self, old_key_prefix: _Optional[bytes] = ..., new_key_prefix: _Optional[bytes] = ..., new_timestamp: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("message", "store_error")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STORE_ERROR_FIELD_NUMBER: _ClassVar[int]
    message: str
    store_error: _errorpb_pb2.Error
    def __init__(self, message: _Optional[str] = ..., store_error: _Optional[_Union[_errorpb_pb2.Error, _Mapping]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("sst", "name", "rewrite_rule", "storage_backend", "is_raw_kv", "cipher_info", "storage_cache_id", "context")
    SST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REWRITE_RULE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BACKEND_FIELD_NUMBER: _ClassVar[int]
    IS_RAW_KV_FIELD_NUMBER: _ClassVar[int]
    CIPHER_INFO_FIELD_NUMBER: _ClassVar[int]
    STORAGE_CACHE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    sst: SSTMeta
    name: str
    rewrite_rule: RewriteRule
    storage_backend: _brpb_pb2.StorageBackend
    is_raw_kv: bool
    cipher_info: _brpb_pb2.CipherInfo
    storage_cache_id: str
    context: _kvrpcpb_pb2.Context
    def __init__(self, sst: _Optional[_Union[SSTMeta, _Mapping]] = ..., name: _Optional[str] = ..., rewrite_rule: _Optional[_Union[RewriteRule, _Mapping]] = ..., storage_backend: _Optional[_Union[_brpb_pb2.StorageBackend, _Mapping]] = ..., is_raw_kv: bool = ..., cipher_info: _Optional[_Union[_brpb_pb2.CipherInfo, _Mapping]] = ..., storage_cache_id: _Optional[str] = ..., context: _Optional[_Union[_kvrpcpb_pb2.Context, _Mapping]] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("range", "is_empty", "error", "crc32", "length")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    IS_EMPTY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    range: Range
    is_empty: bool
    error: Error
    crc32: int
    length: int
    def __init__(self, range: _Optional[_Union[Range, _Mapping]] = ..., is_empty: bool = ..., error: _Optional[_Union[Error, _Mapping]] = ..., crc32: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class IngestRequest(_message.Message):
    __slots__ = ("context", "sst")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SST_FIELD_NUMBER: _ClassVar[int]
    context: _kvrpcpb_pb2.Context
    sst: SSTMeta
    def __init__(self, context: _Optional[_Union[_kvrpcpb_pb2.Context, _Mapping]] = ..., sst: _Optional[_Union[SSTMeta, _Mapping]] = ...) -> None: ...

class MultiIngestRequest(_message.Message):
    __slots__ = ("context", "ssts")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SSTS_FIELD_NUMBER: _ClassVar[int]
    context: _kvrpcpb_pb2.Context
    ssts: _containers.RepeatedCompositeFieldContainer[SSTMeta]
    def __init__(self, context: _Optional[_Union[_kvrpcpb_pb2.Context, _Mapping]] = ..., ssts: _Optional[_Iterable[_Union[SSTMeta, _Mapping]]] = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: _errorpb_pb2.Error
    def __init__(self, error: _Optional[_Union[_errorpb_pb2.Error, _Mapping]] = ...) -> None: ...

class SetDownloadSpeedLimitRequest(_message.Message):
    __slots__ = ("speed_limit", "task_id", "ttl_seconds")
    SPEED_LIMIT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    speed_limit: int
    task_id: str
    ttl_seconds: int
    def __init__(self, speed_limit: _Optional[int] = ..., task_id: _Optional[str] = ..., ttl_seconds: _Optional[int] = ...) -> None: ...

class SetDownloadSpeedLimitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
