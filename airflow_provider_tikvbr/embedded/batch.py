"""The stream that carries many raw calls at once: ``tikvpb.Tikv/BatchCommands``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow_provider_tikvbr.embedded.tikv_service import TikvService
from airflow_provider_tikvbr.proto import tikvpb_pb2

Answer = tuple[int, tikvpb_pb2.BatchCommandsResponse.Response]


class BatchCommands:
    """Answers each request of a stream as soon as it is done; answers that are ready together go out together.

    :param service: what serves the single calls.
    """

    def __init__(self, service: TikvService) -> None:
        self._calls = {
            "RawGet": service.raw_get,
            "RawBatchGet": service.raw_batch_get,
            "RawPut": service.raw_put,
            "RawBatchPut": service.raw_batch_put,
            "RawDelete": service.raw_delete,
            "RawBatchDelete": service.raw_batch_delete,
            "RawScan": service.raw_scan,
            "RawDeleteRange": service.raw_delete_range,
            "RawBatchScan": service.raw_batch_scan,
            "RawCoprocessor": service.raw_coprocessor,
        }

    async def stream(
        self, requests: AsyncIterator[tikvpb_pb2.BatchCommandsRequest], _context: Any
    ) -> AsyncIterator[tikvpb_pb2.BatchCommandsResponse]:
        """Serve one stream until the client closes its side and all is answered."""
        ready: asyncio.Queue[Answer | BaseException | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, ready))
        try:
            done = False
            while not done:
                response = tikvpb_pb2.BatchCommandsResponse()
                item = await ready.get()
                while True:
                    if isinstance(item, BaseException):
                        raise item
                    if item is None:
                        done = True
                        break
                    response.request_ids.append(item[0])
                    response.responses.append(item[1])
                    if ready.empty():
                        break
                    item = ready.get_nowait()
                if response.request_ids:
                    yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[tikvpb_pb2.BatchCommandsRequest], ready: asyncio.Queue[Any]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for batch in requests:
                for request_id, request in zip(batch.request_ids, batch.requests, strict=True):
                    task = asyncio.create_task(self._serve(request_id, request, ready))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
            ready.put_nowait(None)
        except Exception as error:
            ready.put_nowait(error)
        finally:
            for task in tasks:
                task.cancel()

    async def _serve(
        self, request_id: int, request: tikvpb_pb2.BatchCommandsRequest.Request, ready: asyncio.Queue[Any]
    ) -> None:
        name = request.WhichOneof("cmd")
        response = tikvpb_pb2.BatchCommandsResponse.Response()
        try:
            if name in self._calls:
                getattr(response, name).CopyFrom(await self._calls[name](getattr(request, name), None))
            else:
                # Only the test command is left; one that is not known here is answered as empty too, since every id
                # has to be answered once.
                await asyncio.sleep(request.Empty.delay_time / 1000)
                response.Empty.test_id = request.Empty.test_id
        except Exception as error:
            ready.put_nowait(error)
            return
        ready.put_nowait((request_id, response))
