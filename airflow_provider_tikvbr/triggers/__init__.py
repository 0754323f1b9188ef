"""Triggers: the same jobs as those of the operators and the sensor, in Airflow's triggerer."""

from __future__ import annotations
