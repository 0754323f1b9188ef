"""The engine: backup, restore and checksum of raw data. It knows nothing of Airflow."""
