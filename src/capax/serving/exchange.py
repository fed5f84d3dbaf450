"""A request that is being worked on, and the one way to end it early.

The client may leave, a deadline may pass, the server may shut down: each calls
`Exchange.abort`, which cancels the task of the request and says why. Both streaming and
plain handlers are ended so; nobody else cancels them.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from starlette.types import Scope

from capax.serving.errors import ApiError

CLIENT_LEFT_STATUS = 499  # in logs only: nobody was there to be answered


class Silent(Enum):
    """Reasons that nobody is there to be told."""

    CLIENT_LEFT = "the client closed the connection"
    SLOW_READER = "the client took nothing for too long"


class Exchange:
    """The current task's request. `reason` is None until it is aborted."""

    def __init__(self, tenant: str) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an exchange needs a running task")
        self._task = task
        self.tenant = tenant
        self.reason: ApiError | Silent | None = None
        self.is_over = False

    def abort(self, reason: ApiError | Silent) -> None:
        """End the request at the next step; the first reason counts."""
        if self.reason is None and not self.is_over:
            self.reason = reason
            self._task.cancel()

    def take_cancellation(self) -> ApiError | Silent | None:
        """After CancelledError: return the reason and clear the task's mark, None if not ours."""
        if self.reason is not None:
            self._task.uncancel()
        return self.reason


def hang_up(scope: Scope) -> None:
    """Close the connection without waiting for the peer, where the protocol can."""
    connection = scope.get("capax.connection")
    if connection is not None:
        connection.abort()
