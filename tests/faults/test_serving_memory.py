"""`capax serve --memory` bounds the process, not only the model: watched from outside."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.test_shutdown import KEY, started
from tests.serving.raw import exchange, post, status

MIB = 1 << 20
LIMIT_MIB = 320  # the real model, the server, and a cache that does not hold what is asked for
PROMPT = "The history of science is long and begins " * 20


def resident_nbytes(pid: int) -> int:
    n_pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(n_pages) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
def test_a_loaded_server_stays_within_its_memory(smollm2: Path) -> None:
    with started(smollm2, "--memory", f"{LIMIT_MIB}MiB", "--parallel", "16") as process:
        peak, is_over = [0], threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                peak[0] = max(peak[0], resident_nbytes(process.pid))

        def ask(i: int) -> int:
            body = {"prompt": f"{i} {PROMPT}", "max_tokens": 24, "ignore_eos": True}
            request = post("/v1/completions", body, f"Authorization: Bearer {KEY}")
            return status(exchange(process.port, request))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(32) as pool:
                assert set(pool.map(ask, range(32))) == {200}
        finally:
            is_over.set()
            watcher.join()
    assert 0 < peak[0] <= LIMIT_MIB * MIB
