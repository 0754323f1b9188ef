"""Connections to TiKV clusters."""

from __future__ import annotations
