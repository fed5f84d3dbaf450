"""Which answers a judge compares: two chains, each pair in both orders.

Chain 1 joins neighbours, chain 2 each answer of the first half with the one half the way on. Asking
both orders makes a judge that always prefers what it reads first say nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Pair = tuple[int, int]  # shown first, shown second


def pair_plan(n: int, *, as_client: bool = False) -> list[Pair]:
    """Return the comparisons of `n` answers.

    2 (n - 1) + 2 floor(n / 2) of them; for 2 and 3 answers both chains share a pair, which
    `as_client` asks twice, as the public client does, and which is asked once otherwise: a repeated
    question is no further evidence.
    """
    half = n // 2
    chains = [(i, i + 1) for i in range(n - 1)] + [(i, i + half) for i in range(half)]
    if not as_client:
        chains = list(dict.fromkeys(chains))
    return [pair for i, j in chains for pair in ((i, j), (j, i))]


def components(n: int, pairs: Iterable[Pair]) -> list[int]:
    """Return for each of n answers the least answer that comparisons connect it with."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(n)]


def bridges(n: int, done: Iterable[Pair]) -> Iterator[Pair]:
    """Yield the pairs of neighbours to ask again so that the comparisons connect all answers."""
    parts = components(n, done)
    for i in range(n - 1):
        if parts[i] != parts[i + 1]:
            yield i, i + 1
            yield i + 1, i
