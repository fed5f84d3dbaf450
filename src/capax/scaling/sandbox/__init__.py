"""Run code nobody has read, and judge it from another process. See `runner`."""

from capax.scaling.sandbox.process import Limits
from capax.scaling.sandbox.runner import Result, check_isolation, run_tests
from capax.scaling.sandbox.worker import Worker, WorkerTimeout

__all__ = ["Limits", "Result", "Worker", "WorkerTimeout", "check_isolation", "run_tests"]
