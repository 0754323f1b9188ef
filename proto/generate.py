"""Generate the Python messages from the .proto files: run it with the pinned generator (``make proto``).

Two things differ from a plain protoc run. The files are known by their path inside the package, so the generated
imports need no rewriting; and every module adds its descriptors to the package's private pool instead of the
process-wide one, so that another TiKV client in the same worker cannot clash with ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
VIRTUAL = "airflow_provider_tikvbr/proto"
SHARED_POOL = "_descriptor_pool.Default()"
PRIVATE_POOL = "_descriptor_pool"
SHARED_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool"
PRIVATE_POOL_IMPORT = "from airflow_provider_tikvbr.proto._pool import POOL as _descriptor_pool"


def main() -> int:
    """Write ``*_pb2.py`` and ``*_pb2.pyi`` beside the package's other messages."""
    names = sorted(p.name for p in (ROOT / "proto").glob("*.proto"))
    code: int = protoc.main(
        [
            "protoc",
            f"-I{VIRTUAL}={ROOT / 'proto'}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            *(f"{VIRTUAL}/{name}" for name in names),
        ]
    )
    if code:
        return code
    for path in sorted((ROOT / VIRTUAL).glob("*_pb2.py")):
        text = path.read_text()
        if SHARED_POOL not in text or SHARED_POOL_IMPORT not in text:
            print(f"{path.name}: the generator no longer writes what this script rewrites", file=sys.stderr)
            return 1
        path.write_text(text.replace(SHARED_POOL, PRIVATE_POOL).replace(SHARED_POOL_IMPORT, PRIVATE_POOL_IMPORT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
