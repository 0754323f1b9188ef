"""The package's own patience, made short: a run lasts a second, and what it waits for happens in tenths of one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

PACKAGE = "airflow_provider_tikvbr"
# By module; each constant means the same as before, only sooner.
SHORT: Mapping[str, Mapping[str, float]] = {
    "rawbr.push": {"RETRY_BASE_S": 0.03, "RETRY_CAP_S": 0.1},
    "rawbr.gaps": {"RETRY_BASE_S": 0.03, "RETRY_CAP_S": 0.2},
    "rawbr.coverage": {"IDLE_TIMEOUT_S": 1.0},
    "rawbr.checksum": {"CALL_TIMEOUT_S": 1.5, "RETRY_BASE_S": 0.03, "RETRY_CAP_S": 0.2},
    "rawbr.download": {"TIMEOUT_S": 1.5},
    "rawbr.ingest": {"INGEST_TIMEOUT_S": 1.5, "INSIST_S": 0.5},
    "rawbr.pieces": {"UNKNOWN_BUDGET_S": 2.0, "TICK_S": 0.1},
    "rawbr.parking": {"PIECE_BASE_S": 0.03, "PIECE_CAP_S": 0.2, "OUTAGE_BASE_S": 0.03, "OUTAGE_CAP_S": 0.2},
    "rawbr.files": {"RETRY_BASE_S": 0.03, "RETRY_CAP_S": 0.2},
    "tikv.pd": {"CALL_TIMEOUT_S": 1.5},
    "tikv.store": {"CALL_TIMEOUT_S": 1.5},
}


@contextmanager
def hurried() -> Iterator[None]:
    """Be impatient while the block runs.

    :raises AttributeError: a module has no such constant (any more).
    """
    with ExitStack() as until_the_end:
        for module, values in SHORT.items():
            found = importlib.import_module(f"{PACKAGE}.{module}")
            until_the_end.enter_context(mock.patch.multiple(found, **dict[str, Any](values)))
        yield
