"""Tries grammars in a process of their own, which may crash or be killed."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from capax.errors import SandboxError

COMPILE_SECONDS = 2.0
START_SECONDS = 60.0  # for the vocabulary, on a machine with other things to do
MAX_REPLY_NBYTES = 1 << 16


class Words(NamedTuple):
    """A vocabulary as llguidance wants it."""

    tokens: list[bytes]
    special: list[int]  # control tokens, which no text of a grammar matches
    ends: list[int]  # those that end an answer; at least one
    vocab_size: int  # of the model; at least len(tokens)


class ConstraintHelper:
    """The helper process, started when it is first needed. One grammar at a time."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._lock = threading.Lock()  # keeps one request and its reply together
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = 0  # a forked child must not talk on its parent's connection
        _HELPERS.add(self)

    def try_grammar(self, kind: str, text: str) -> str:
        """Return why a grammar does not compile; empty if it does."""
        with self._lock:
            connection = self._running()
            try:
                connection.send_bytes(json.dumps([kind, text]).encode())
                if not connection.poll(COMPILE_SECONDS):
                    self._discard()
                    return f"compiling it takes more than {COMPILE_SECONDS:g} s; simplify it"
                return connection.recv_bytes(MAX_REPLY_NBYTES).decode()
            except (EOFError, OSError):
                self._discard()
                return "compiling it needs too much memory, or crashes; simplify it"
            except BaseException:  # Ctrl-C between request and reply: they are out of step
                self._discard()
                raise

    def close(self) -> None:
        """End the helper, if there is one."""
        with self._lock:
            self._discard()

    def _running(self) -> Connection:
        process, connection = self._process, self._connection
        if (
            process is not None
            and connection is not None
            and self._owner == os.getpid()
            and process.poll() is None
        ):
            return connection
        self._discard()
        return self._started()

    def _started(self) -> Connection:
        ours, theirs = Pipe()
        script = Path(__file__).with_name("constraint_child.py")
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-X", "utf8", str(script)),
                    *(str(theirs.fileno()), str(script.parent), _place_of_llguidance()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"RAYON_NUM_THREADS": "1"},
                cwd="/",
            )
        except OSError as error:
            raise SandboxError(f"cannot start the grammar helper: {error.strerror}") from None
        finally:
            theirs.close()
        self._connection, self._owner = ours, os.getpid()
        words = self._words
        vocabulary = {
            "tokens": [token.decode("latin-1") for token in words.tokens],
            "special": words.special,
            "ends": words.ends,
            "vocab_size": words.vocab_size,
        }
        try:
            ours.send_bytes(json.dumps(vocabulary).encode())
            if ours.poll(START_SECONDS):
                ours.recv_bytes(MAX_REPLY_NBYTES)
                return ours
        except (EOFError, OSError):
            pass
        except BaseException:
            self._discard()
            raise
        self._discard()
        raise SandboxError(
            f"the grammar helper did not start within {START_SECONDS:g} s or died; see whether "
            "'python -c \"import llguidance\"' works"
        )

    def _discard(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()
        if process is None:
            return
        if self._owner == os.getpid():
            process.kill()
            process.wait()
        else:
            process.returncode = 0  # not our child: nothing to wait for


def _place_of_llguidance() -> str:
    spec = importlib.util.find_spec("llguidance")
    if spec is None or spec.origin is None:
        raise SandboxError("llguidance is not installed: run 'pip install capax[serve]'")
    return str(Path(spec.origin).parents[1])


def _close_all() -> None:
    for helper in list(_HELPERS):
        helper.close()


_HELPERS: weakref.WeakSet[ConstraintHelper] = weakref.WeakSet()
atexit.register(_close_all)
