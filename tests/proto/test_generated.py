"""The committed messages are those of the .proto files, and live beside other TiKV clients in one process."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.proto._pool import POOL

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((ROOT / "proto").glob("*.proto"))
PACKAGE = "airflow_provider_tikvbr/proto"
NAMES = [source.stem for source in SOURCES]


def module_descriptor(name: str) -> FileDescriptor:
    found = importlib.import_module(f"airflow_provider_tikvbr.proto.{name}_pb2").DESCRIPTOR
    if not isinstance(found, FileDescriptor):
        raise TypeError(name)
    return found


def plain(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Without JSON names, which some generators write out and others leave to be derived."""

    def strip(message: descriptor_pb2.DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            strip(nested)

    for message in file.message_type:
        strip(message)
    return file


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """What the .proto files say now."""
    out = tmp_path_factory.mktemp("proto") / "all.pb"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PACKAGE}={ROOT / 'proto'}",
        f"--descriptor_set_out={out}",
    ]
    subprocess.run([*command, *(f"{PACKAGE}/{source.name}" for source in SOURCES)], check=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return {Path(file.name).stem: plain(file) for file in files}


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_current(name: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    committed = descriptor_pb2.FileDescriptorProto()
    module_descriptor(name).CopyToProto(committed)
    assert plain(committed) == compiled[name], f"proto/{name}.proto has changed: run make proto"


@pytest.mark.parametrize("name", NAMES)
def test_type_stubs_are_current(name: str) -> None:
    descriptor = module_descriptor(name)
    stub = (ROOT / PACKAGE / f"{name}_pb2.pyi").read_text()
    assert set(re.findall(r"^class (\w+)\(", stub, re.MULTILINE)) == {
        *descriptor.message_types_by_name,
        *descriptor.enum_types_by_name,
    }
    for message in descriptor.message_types_by_name.values():
        body = stub.partition(f"class {message.name}(")[2].partition("\nclass ")[0]
        for field in message.fields:
            assert re.search(rf"^    {field.name}: ", body, re.MULTILINE), f"{message.name}.{field.name}"


def test_every_source_has_its_module_and_the_other_way_round() -> None:
    assert sorted(path.stem for path in (ROOT / PACKAGE).glob("*_pb2.py")) == [f"{name}_pb2" for name in NAMES]


def test_nothing_is_in_the_pool_that_others_use() -> None:
    for name in NAMES:
        descriptor = module_descriptor(name)
        assert descriptor.pool is POOL
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindFileByName(descriptor.name)


# Another client's messages: the same file and message names, other fields, in the process-wide pool.
OTHERS = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

def other_client():
    pool = descriptor_pool.Default()
    for package in ("metapb", "errorpb", "kvrpcpb", "pdpb", "backup"):
        for path in (package + ".proto", "airflow_provider_tikvbr/proto/" + package + ".proto"):
            if package == "backup" and path.startswith("airflow"):
                continue
            file = descriptor_pb2.FileDescriptorProto(name=path, syntax="proto3", package=package)
            if path.startswith("airflow"):
                file.package = "other." + package
            message = file.message_type.add(name="Region" if package == "metapb" else "Error")
            message.field.add(name="nonsense", number=1, type=9, label=1)
            pool.AddSerializedFile(file.SerializeToString())
    theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("metapb.Region"))
    assert theirs(nonsense="x").SerializeToString() == b"\\x0a\\x01x"

def ours():
    from airflow_provider_tikvbr.proto import metapb_pb2, methods
    assert metapb_pb2.Region(id=5).SerializeToString() == b"\\x08\\x05"
    assert methods.PD_GET_REGION.response.FromString(b"\\x12\\x02\\x08\\x05").region.id == 5
"""


@pytest.mark.parametrize(
    "order", [("other_client", "ours"), ("ours", "other_client"), ("ours", "other_client", "ours")]
)
def test_another_client_in_the_same_process(order: tuple[str, ...]) -> None:
    program = OTHERS + "".join(f"{name}()\n" for name in order)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- the table of methods ---

TABLE = {name: value for name, value in vars(methods).items() if isinstance(value, methods.Method)}


def test_paths_are_unique_and_well_formed() -> None:
    assert len({method.path for method in TABLE.values()}) == len(TABLE)
    for method in TABLE.values():
        assert re.fullmatch(r"/[a-z_]+(\.[a-zA-Z0-9]+)+/\w+", method.path)
        assert method.path == f"/{method.service}/{method.name}"


@pytest.mark.parametrize("name", TABLE)
def test_messages_of_a_method_are_ours(name: str) -> None:
    method = TABLE[name]
    for message in (method.request, method.response):
        assert issubclass(message, Message)
        assert message.DESCRIPTOR.file.pool is POOL
    if method.path.startswith(("/pdpb.", "/keyspacepb.")):
        assert "header" in method.request.DESCRIPTOR.fields_by_name
        assert "header" in method.response.DESCRIPTOR.fields_by_name


def test_the_one_method_spelled_in_lower_case() -> None:
    assert methods.BACKUP.path == "/backup.Backup/backup"
    assert methods.BACKUP.server_streams
    assert not methods.BACKUP.client_streams
