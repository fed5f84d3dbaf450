"""`capax kv`: look at what KV methods bring along, and bring it into shape."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "kv",
    table={
        "cost": ("kv_cost", "Show bytes and operations of XQuant for a model."),
        "fit": ("kv_fit", "Fit codebooks of the cache 'million' to a model."),
        "inspect": ("kv_inspect", "Show what the gates of a trim cache have learned."),
        "import-gates": ("kv_import_gates", "Make published gates those of a model."),
    },
    help="Look at what KV methods bring along: gates, codebooks.",
)
