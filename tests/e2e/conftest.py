"""The S3 server of the storage's tests serves these too."""

from __future__ import annotations

from tests.storage.conftest import bucket, s3_server

__all__ = ["bucket", "s3_server"]
