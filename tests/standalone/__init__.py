"""Runs of this package in a whole Airflow of several processes, which take minutes: ``python -m tests.standalone``."""
