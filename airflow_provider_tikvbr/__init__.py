"""RawKV backup, verification, API-version conversion and restore of TiKV clusters, natively in Apache Airflow."""

from __future__ import annotations

__version__ = "0.1.0"
