"""What is remembered of the context: one method per file."""

from capax.kv.cache import AttentionInput, KVCache
from capax.kv.paged import (
    KV_TYPES,
    PAGE_TOKENS,
    FullCache,
    KVType,
    PagedKVCache,
    PagePool,
    page_nbytes,
    pages_for,
)

__all__ = [
    "KV_TYPES",
    "PAGE_TOKENS",
    "AttentionInput",
    "FullCache",
    "KVCache",
    "KVType",
    "PagePool",
    "PagedKVCache",
    "page_nbytes",
    "pages_for",
]
