"""The cache of the last finished request, kept so that a conversation need not start over."""

from __future__ import annotations

from capax.kv import PagedKVCache


class KeptPrefix:
    """At most one (tokens, cache); handed to the next prompt that begins alike."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._cache: PagedKVCache | None = None

    @property
    def n_pages(self) -> int:
        return len(self._cache.page_table) if self._cache else 0

    def pages(self) -> set[int]:
        """Ids of the pages kept."""
        return {int(p) for p in self._cache.page_table} if self._cache else set()

    def keep(self, tokens: list[int], cache: PagedKVCache) -> None:
        """Keep `cache`, which holds a prefix of `tokens`; takes ownership of it."""
        self.drop()
        self._tokens, self._cache = tokens, cache

    def take(self, prompt_ids: list[int]) -> PagedKVCache | None:
        """Hand over the cache, cut to what it shares with the prompt, or None.

        The prompt's last token is never taken from the cache: its logits are wanted.
        """
        if self._cache is None:
            return None
        limit = min(self._cache.n_tokens, len(prompt_ids) - 1)
        shared = 0
        while shared < limit and self._tokens[shared] == prompt_ids[shared]:
            shared += 1
        if shared == 0:
            return None
        cache, self._cache = self._cache, None
        cache.truncate(shared)
        return cache

    def drop(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None
