"""Tasks that back up and restore."""

from __future__ import annotations
