"""Every KV method: importing this registers them all. A run imports only what it uses."""

from capax.kv import paged, quantized

__all__ = ["paged", "quantized"]
