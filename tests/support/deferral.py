"""Deferred tasks, without an Airflow around them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.serde import deserialize, serialize

from airflow_provider_tikvbr.triggers.engine import EngineTrigger


def defer(task: Any, context: Any = None) -> EngineTrigger:
    """Let a task defer itself, and make its trigger anew as a triggerer does, from what the database holds of it."""
    with pytest.raises(TaskDeferred) as caught:
        task.execute({} if context is None else context)
    path, kwargs = caught.value.trigger.serialize()
    assert json.loads(json.dumps(kwargs)) == kwargs
    made = import_string(path)(**cast("dict[str, Any]", deserialize(cast("Any", serialize(kwargs)))))
    assert made.serialize() == (path, kwargs)
    return cast("EngineTrigger", made)


async def fire(trigger: EngineTrigger) -> dict[str, Any]:
    """Run a trigger to its event, and its end."""
    events = [event async for event in trigger.run()]
    assert len(events) == 1
    payload = cast("dict[str, Any]", events[0].payload)
    assert json.loads(json.dumps(payload)) == payload
    return payload


def run_deferred(task: Any, context: Any = None) -> Any:
    """Run a task as if Airflow had deferred it: worker, triggerer, worker."""
    context = {} if context is None else context
    event = asyncio.run(fire(defer(task, context)))
    return task.resume_execution("execute_complete", {"event": event}, context)
