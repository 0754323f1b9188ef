"""What Airflow reads about this package."""

from __future__ import annotations

from typing import Any

from airflow_provider_tikvbr import __version__


def get_provider_info() -> dict[str, Any]:
    """Describe the provider."""
    return {
        "package-name": "airflow-provider-tikvbr",
        "name": "TiKV BR",
        "description": "Back up, verify, convert and restore TiKV RawKV clusters.",
        "versions": [__version__],
    }
