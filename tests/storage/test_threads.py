from __future__ import annotations

import threading

from airflow_provider_tikvbr.storage.threads import StorageThreads


async def test_calls_run_in_threads_of_that_name_again_and_again() -> None:
    threads = StorageThreads(name="blocking")
    for number in range(2):
        assert (await threads.run(lambda n: (n, threading.current_thread().name), number)) == (number, "blocking_0")
        threads.close()
        threads.close()


def test_none_is_there_before_it_is_used() -> None:
    StorageThreads(name="unused")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unused")]
