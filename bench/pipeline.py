"""Time backup, checksum and restore of many small pairs, end to end through real sockets.

Two embedded clusters run as processes of their own; the pairs are written into the first one through the raw API, and each
step is one run of the ``tikvbr`` command, whose wall time and peak resident memory are printed.

    python bench/pipeline.py --pairs 1000000 --value-size 250 --regions 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

import airflow_provider_tikvbr
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, methods
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, RegionKey, UserKey
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.options import ClusterOptions

COMMAND = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main"]
BATCH_BYTES = 256 * 1024
READY = "ready pd="


@dataclass(frozen=True, slots=True)
class Step:
    """What one run of the command took."""

    name: str
    seconds: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """An embedded cluster in a process of its own."""

    pd: str
    pid: int

    def peak_mib(self) -> float:
        """Peak resident memory so far, from the kernel."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return 0.0


@contextlib.contextmanager
def embedded(data: Path, *, api_version: str, stores: int, replicas: int) -> Iterator[Embedded]:
    """Run an embedded cluster until the block ends."""
    argv = [*COMMAND, "embedded", "--api-version", api_version, "--stores", str(stores)]
    argv += ["--replicas", str(replicas), "--pd-port", "0", "--data", str(data)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                if line.startswith(READY):
                    yield Embedded(line.removeprefix(READY).strip(), process.pid)
                    return
            raise RuntimeError("the embedded cluster ended before it was ready")
        finally:
            process.terminate()
            process.wait()


async def load(pd: str, *, pairs: int, value_size: int, regions: int) -> None:
    """Split the cluster into regions and write the pairs, region by region, at their leaders."""
    async with await Cluster.connect(ClusterOptions(pd=(pd,))) as cluster:
        codec = cluster.codec
        step = pairs / regions
        splits = [codec.api_key(UserKey(b"key%012d" % int(i * step))) for i in range(1, regions)]
        first = await cluster.regions.locate(RegionKey(b""))
        await (await cluster.client(first.known_leader().store_id)).split_region(first, splits)
        ids = [r.id for r in await cluster.pd.scan_regions(codec.region_range(codec.api_range(EVERYTHING)), 0)]
        await cluster.pd.scatter(ids)
        found = await cluster.pd.scan_regions(codec.region_range(codec.api_range(EVERYTHING)), 0)
        stores = {s.id: s.address for s in await cluster.up_stores()}
        rng = random.Random(1)
        gate = asyncio.Semaphore(8)
        channels = {i: grpc.aio.insecure_channel(a, [("grpc.max_send_message_length", -1)]) for i, a in stores.items()}
        try:
            size = max(1, BATCH_BYTES // value_size)
            numbers = iter(range(pairs))
            number = next(numbers, None)
            for region in found:
                tasks = []
                batch: list[tuple[bytes, bytes]] = []
                while number is not None and region.keys.contains(codec.region_key(codec.api_key(key_of(number)))):
                    batch.append((bytes(codec.api_key(key_of(number))), rng.randbytes(value_size // 2) * 2))
                    number = next(numbers, None)
                    if len(batch) == size:
                        tasks.append(put(gate, channels, region, batch, cluster.api_version))
                        batch = []
                if batch:
                    tasks.append(put(gate, channels, region, batch, cluster.api_version))
                await asyncio.gather(*tasks)
        finally:
            for channel in channels.values():
                await channel.close()


def key_of(number: int) -> UserKey:
    """The key of one pair."""
    return UserKey(b"key%012d" % number)


async def put(
    gate: asyncio.Semaphore,
    channels: dict[int, grpc.aio.Channel],
    region: Region,
    batch: list[tuple[bytes, bytes]],
    api_version: ApiVersion,
) -> None:
    """Write one batch of pairs at the region's leader."""
    leader = region.known_leader()
    method = methods.KV_RAW_BATCH_PUT
    call = channels[leader.store_id].unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )
    request = kvrpcpb_pb2.RawBatchPutRequest(
        context=region.context(leader, api_version),
        pairs=[kvrpcpb_pb2.KvPair(key=k, value=v) for k, v in batch],
    )
    async with gate:
        response = await call(request)
    if response.error or response.HasField("region_error"):
        raise RuntimeError(f"cannot load: {response}")


def run(name: str, *argv: str) -> Step:
    """Run the command once; its output goes to our own."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, *argv])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed with exit code {process.returncode}")
    return Step(name, time.monotonic() - began, usage.ru_maxrss / 1024)


def main() -> int:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--value-size", type=int, default=250, help="bytes; half of them are random")
    parser.add_argument("--regions", type=int, default=60)
    parser.add_argument("--stores", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--api-version", default="v1", choices=["v1", "v1ttl", "v2"])
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tikvbr-bench-")))
        shape = {"api_version": args.api_version, "stores": args.stores, "replicas": args.replicas}
        source = stack.enter_context(embedded(work / "source", **shape))
        target = stack.enter_context(embedded(work / "target", **shape))
        began = time.monotonic()
        asyncio.run(load(source.pd, pairs=args.pairs, value_size=args.value_size, regions=args.regions))
        steps = [Step("load (not ours to speed up)", time.monotonic() - began, 0.0)]
        url = f"local://{work / 'backup'}"
        steps.append(run("backup", "backup", "raw", "--pd", source.pd, "--storage", url))
        steps.append(run("checksum", "checksum", "--pd", source.pd, "--storage", url))
        steps.append(run("restore", "restore", "raw", "--pd", target.pd, "--storage", url))
        steps.append(run("checksum of the target", "checksum", "--pd", target.pd, "--storage", url))
        print(
            f"\n{args.pairs:,} pairs of {args.value_size} bytes, {args.regions} regions, {args.stores} stores, "
            f"{args.replicas} replica(s), API {args.api_version.upper()}; airflow-provider-tikvbr "
            f"{airflow_provider_tikvbr.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
        )
        print(f"{'step':<30}{'seconds':>9}{'pairs/s':>12}{'peak MiB of the command':>26}")
        for step in steps:
            peak = f"{step.peak_mib:.0f}" if step.peak_mib else "-"
            print(f"{step.name:<30}{step.seconds:>9.2f}{args.pairs / step.seconds:>12,.0f}{peak:>26}")
        print(f"peak MiB of the embedded clusters: source {source.peak_mib():.0f}, target {target.peak_mib():.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
