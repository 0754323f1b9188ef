"""The line to a cluster: asynchronous clients of PD and TiKV."""

from __future__ import annotations

import os

# gRPC's core writes notes of its own to stderr, such as every handshake that fails. What matters of them reaches us as
# the status of a call, and a task's log has no use for the rest. It reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
