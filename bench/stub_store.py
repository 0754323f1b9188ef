"""A store that only pretends: it answers one backup request with a response per region, as fast as it can.

    python bench/stub_store.py --regions 520000

It prints ``ready HOST:PORT`` once it serves, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.serving import SERVER_OPTIONS
from airflow_provider_tikvbr.proto import brpb_pb2, methods

PAIRS = 400_000
PAIR_BYTES = 96 << 20
FILE_BYTES = 40 << 20


def region_start(region: int) -> bytes:
    """The first key of a region; none for the first one."""
    return b"" if region == 0 else b"user%012d" % region


def response(region: int, regions: int) -> bytes:
    """What a store answers for a region of 96 MiB."""
    start, end = region_start(region), region_start(region + 1) if region + 1 < regions else b""
    digest = hashlib.sha256(start).digest()
    file = brpb_pb2.File(
        name=f"1/{region + 10}_7_{digest.hex()}_1763900000000_default.sst",
        sha256=digest,
        start_key=start,
        end_key=end,
        cf="default",
        crc64xor=int.from_bytes(digest[:8], "big"),
        total_kvs=PAIRS,
        total_bytes=PAIR_BYTES,
        size=FILE_BYTES,
    )
    return brpb_pb2.BackupResponse(start_key=start, end_key=end, files=[file]).SerializeToString()


async def serve(regions: int) -> None:
    """Answer until standard input ends."""
    answers = [response(region, regions) for region in range(regions)]

    async def backup(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for answer in answers:
            yield answer

    handler = grpc.unary_stream_rpc_method_handler(backup)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    method = methods.BACKUP
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(method.service, {method.name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready 127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=520_000)
    asyncio.run(serve(parser.parse_args().regions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
