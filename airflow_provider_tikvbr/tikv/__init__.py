"""The line: asynchronous clients of PD and TiKV."""
