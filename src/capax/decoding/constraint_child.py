"""The process that tries a grammar before the server compiles it. Run as a script, never imported.

Arguments: the descriptor of a connection, and the directories that hold llguidance. The first
message is the vocabulary; each further one is a grammar, answered by an error text, empty if
the grammar compiles and some text satisfies it. This process may be killed at any time.
"""

from __future__ import annotations

import json
import resource
import sys
from multiprocessing.connection import Connection

MEMORY_NBYTES = 2 << 30  # of address space: threads and allocator arenas count
CPU_SECONDS = 600  # of all grammars together; a single one is timed by the parent


def main() -> None:
    """Serve until the parent closes the connection."""
    descriptor, *places = sys.argv[1:]
    sys.path += places
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_NBYTES, MEMORY_NBYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(int(descriptor))
    from constraint_grammar import make_tokenizer, matcher_of  # type: ignore[import-not-found]

    vocabulary = json.loads(connection.recv_bytes())
    tokens = [text.encode("latin-1") for text in vocabulary["tokens"]]
    tokenizer = make_tokenizer(
        tokens, vocabulary["special"], vocabulary["ends"], vocabulary["vocab_size"]
    )
    connection.send_bytes(b"")
    while True:
        try:
            kind, text = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            matcher_of(tokenizer, kind, text)
            answer = ""
        except ValueError as error:
            answer = str(error)
        connection.send_bytes(answer.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
