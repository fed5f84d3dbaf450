"""What is remembered of the context: one method per file."""

from capax.kv.cache import (
    AttentionInput,
    Inserted,
    InsertingCache,
    KVCache,
    Rotary,
    SharedPagesCache,
)
from capax.kv.coded import CodedKVCache, CodedStore, coded_footprint
from capax.kv.method import KVMethod, kv_method, kv_name, parse_kv
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
from capax.kv.store import CountedStore, KVFootprint, KVStore

__all__ = [
    "KV_TYPES",
    "PAGE_TOKENS",
    "AttentionInput",
    "CodedKVCache",
    "CodedStore",
    "CountedStore",
    "FullCache",
    "Inserted",
    "InsertingCache",
    "KVCache",
    "KVFootprint",
    "KVMethod",
    "KVStore",
    "KVType",
    "PagePool",
    "PagedKVCache",
    "Rotary",
    "SharedPagesCache",
    "coded_footprint",
    "kv_method",
    "kv_name",
    "page_nbytes",
    "pages_for",
    "parse_kv",
]
