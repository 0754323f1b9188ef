"""What keeping a checkpoint costs a backup: the answers of a pretended store, taken in with and without one, in turn.

    python bench/checkpoint.py --regions 520000 --rounds 6

The store answers as fast as it can, which no real one does: the share of a real backup's time is far smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr import checkpoint as checkpoints
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint
from airflow_provider_tikvbr.rawbr.checkpoint_format import JobIdentity
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import ignore
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyCodec
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import GrpcOptions
from airflow_provider_tikvbr.tikv.store import StoreClient

STUB = Path(__file__).with_name("stub_store.py")


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over all answers.

    :param seconds: from the request to the last answer, and to the last file of the checkpoint.
    :param cpu: seconds of processor time of this process meanwhile, which other work on the machine disturbs less.
    :param longest_save: the longest time that one file of it took.
    """

    seconds: float
    cpu: float
    longest_save: float = 0.0


@contextlib.contextmanager
def stub_store(regions: int) -> Iterator[str]:
    """A pretended store in a process of its own; gives its address."""
    command = [sys.executable, str(STUB), "--regions", str(regions)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield line.split()[1]
        finally:
            if process.stdin:
                process.stdin.close()


async def take_all(address: str, storage: Storage, *, save: bool) -> Run:
    """Take in every answer of the store."""
    checkpoint = None
    if save:
        identity = JobIdentity(kind="backup", owner="", options={})
        checkpoint = await Checkpoint.open(storage, directory="backup.checkpoint", identity=identity, resume=False)
    coverage = Coverage(
        brpb_pb2.BackupRequest(),
        codec=KeyCodec(ApiVersion.V1),
        storage=storage,
        step="bench",
        total=0,
        listener=ignore,
        on_accepted=checkpoint.add if checkpoint else None,
    )
    client = StoreClient(Store(id=1, address=address, version="8.5.0"), tls=None, options=GrpcOptions())
    everything = KeyCodec(ApiVersion.V1).api_range(EVERYTHING)
    longest = 0.0
    write = storage.write

    async def timed(name: str, data: bytes) -> None:
        nonlocal longest
        began = time.monotonic()
        await write(name, data)
        longest = max(longest, time.monotonic() - began)

    storage.write = timed  # type: ignore[method-assign]
    started, cpu = time.monotonic(), time.process_time()
    try:
        async with contextlib.AsyncExitStack() as stack:
            if checkpoint:
                await stack.enter_async_context(checkpoint.keeping())
            await coverage.take(client, everything)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    finally:
        storage.write = write  # type: ignore[method-assign]
        await client.close()
    if checkpoint:
        await checkpoint.remove()
    if coverage.gaps():
        raise RuntimeError("the store left something out")
    return Run(seconds, cpu, longest)


async def measure(regions: int, rounds: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tikvbr-bench-") as place, stub_store(regions) as address:
        async with open_storage(f"local://{place}") as storage:
            await storage.prepare()
            await take_all(address, storage, save=False)
            plain: list[Run] = []
            saved: list[Run] = []
            for number in range(rounds):
                # Each comes first as often as the other: the machine may become slower or faster meanwhile.
                for save in (False, True) if number % 2 else (True, False):
                    (saved if save else plain).append(await take_all(address, storage, save=save))
    seconds = [with_it.seconds - without.seconds for without, with_it in zip(plain, saved, strict=True)]
    cpu = [with_it.cpu - without.cpu for without, with_it in zip(plain, saved, strict=True)]
    whole, whole_cpu = median(run.seconds for run in plain), median(run.cpu for run in plain)
    print(f"regions                    {regions:>10,}, in {rounds} rounds; all figures are medians of them")
    print(f"without checkpoint         {whole:>10.2f} s  ({regions / whole:,.0f} regions/s; {_spread(plain)})")
    print(
        f"with, every {checkpoints.SAVE_INTERVAL_S:g} s           {median(run.seconds for run in saved):>10.2f} s  ({_spread(saved)})"
    )
    print(f"cost                       {median(seconds):>10.2f} s  ({median(seconds) / whole:.1%} at this rate)")
    print(f"cost in processor time     {median(cpu):>10.2f} s  ({median(cpu) / whole_cpu:.1%} of {whole_cpu:.2f} s)")
    print(f"longest write of a file    {max(run.longest_save for run in saved):>10.3f} s")


def _spread(runs: list[Run]) -> str:
    return f"from {min(run.seconds for run in runs):.2f} to {max(run.seconds for run in runs):.2f}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=520_000)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.regions, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
