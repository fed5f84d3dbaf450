"""Every KV method: importing this registers them all. A run imports only what it uses."""

from capax.kv import (
    h2o,
    landmark,
    million,
    paged,
    quantized,
    random_eviction,
    snapkv,
    stream,
    trim,
    xquant,
)

__all__ = [
    "h2o",
    "landmark",
    "million",
    "paged",
    "quantized",
    "random_eviction",
    "snapkv",
    "stream",
    "trim",
    "xquant",
]
