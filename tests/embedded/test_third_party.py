"""The client library for Python that TiKV's makers publish works against the embedded cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey

# In a process of its own: the library keeps threads that do not end before the interpreter does.
PROGRAM = """
import json, os, sys
from tikv_client import RawClient
client = RawClient.connect([sys.argv[1]])
found = {}
client.put(b"a", b"1")
client.batch_put({b"k%02d" % i: b"v%d" % i for i in range(40)})
found["get"] = client.get(b"a").decode()
found["missing"] = client.get(b"b")
found["batch"] = sorted(v.decode() for _, v in client.batch_get([b"k05", b"k35", b"none"]))
found["scan"] = [k.decode() for k, _ in client.scan(b"k08", end=b"k12", limit=10)]
found["keys"] = [k.decode() for k in client.scan_keys(b"k30", end=None, limit=3)]
client.delete(b"a")
found["deleted"] = client.get(b"a")
client.batch_delete([b"k00", b"k39"])
client.delete_range(b"k10", end=b"k20")
found["left"] = len(client.scan(b"", end=None, limit=100))
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("api_version", [ApiVersion.V1, ApiVersion.V1TTL], ids=lambda v: v.name)
def test_the_python_client(api_version: ApiVersion, tmp_path: Path) -> None:
    settings = {"stores": 3, "replicas": 3, "split_keys": [UserKey(b"k10"), UserKey(b"k30")]}
    with ThreadedCluster(data_dir=tmp_path, api_version=api_version, **settings) as embedded:
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, embedded.pd_address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout.splitlines()[-1]) == {
            "get": "1",
            "missing": None,
            "batch": ["v35", "v5"],
            "scan": ["k08", "k09", "k10", "k11"],
            "keys": ["k30", "k31", "k32"],
            "deleted": None,
            "left": 28,
        }
        left = [n for n in range(40) if n not in (0, 39) and not 10 <= n < 20]
        assert [p.key for p in embedded.pairs()] == [b"k%02d" % n for n in left]
