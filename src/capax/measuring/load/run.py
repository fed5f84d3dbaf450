"""Send a load and wait for all of it.

Open loop: requests are sent when they are due, however long the ones before take. At a finite
rate a request's time begins when it was due, not when it was sent: should the generator be late,
or `max_concurrency` hold it back, its waiting counts (what is called coordinated omission is the
error of leaving it out). At an infinite rate the next request is sent when one ends, and its time
begins then: a closed loop of `max_concurrency` clients.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capax.errors import EndpointError
from capax.measuring.load.http import Client
from capax.measuring.load.request import Outcome, Target, send
from capax.measuring.load.workload import Planned

POLL_S = 0.25
MAX_LISTING_NBYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """The outcomes of a load in the order of its requests, and what it took to make it.

    `cpu_share`: processor time of this process over the duration; near 1 the generator itself
    may have been the limit.
    """

    outcomes: list[Outcome]
    duration_s: float
    cpu_share: float


async def run_load(
    client: Client,
    target: Target,
    requests: Sequence[Planned],
    *,
    max_concurrency: int | None = None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> Load:
    """Send the requests and return what became of them. Never raises for a request's failure."""
    room = asyncio.Semaphore(max_concurrency or len(requests) or 1)
    counts_waiting = any(planned.arrival_s > 0 for planned in requests)
    cpu_s = time.process_time()
    zero_s = time.perf_counter()

    async def one(planned: Planned) -> Outcome:
        async with room:
            now_s = time.perf_counter() - zero_s
            start_s = planned.arrival_s if counts_waiting else now_s
            outcome = await send(client, target, planned, start_s=start_s, zero_s=zero_s)
        on_end(outcome)
        return outcome

    tasks: list[asyncio.Task[Outcome]] = []
    try:
        for planned in sorted(requests, key=lambda p: p.arrival_s):
            delay = planned.arrival_s - (time.perf_counter() - zero_s)
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(one(planned)))
        outcomes = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    duration_s = time.perf_counter() - zero_s
    return Load(list(outcomes), duration_s, (time.process_time() - cpu_s) / max(duration_s, 1e-9))


async def wait_ready(client: Client, timeout_s: float) -> str:
    """Wait until the server lists its models; return the first one's name.

    Raises EndpointError if it does not within `timeout_s`, with the last reason.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with asyncio.timeout(max(0.01, min(10.0, deadline - time.monotonic()))):
                return await _first_model(client)
        except EndpointError as error:
            reason = str(error)
        except TimeoutError:
            reason = "no answer"
        if time.monotonic() + POLL_S >= deadline:
            where = client.address.authority
            raise EndpointError(f"{where} is not ready after {timeout_s:g} s: {reason}")
        await asyncio.sleep(POLL_S)


async def _first_model(client: Client) -> str:
    async with client.request("GET", "/v1/models") as response:
        body = await response.body(MAX_LISTING_NBYTES)
        if response.status != 200:
            shown = " ".join(body.decode("utf-8", "replace").split())[:200]
            raise EndpointError(f"/v1/models answers {response.status}: {shown}")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise EndpointError("/v1/models is not a list of models") from None
