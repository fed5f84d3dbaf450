"""`capax measure runtime`: what a query costs on this hardware with nothing else running."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "runtime",
    table={
        "profile": ("runtime_profile", "Time a grid of queries on a model."),
        "fit": ("runtime_fit", "Fit the samples of a profile."),
        "estimate": ("runtime_estimate", "Price a query from a profile."),
        "bill": ("runtime_bill", "Price the request log of a server."),
        "compare": ("runtime_compare", "Compare two profiles."),
    },
    help="Price queries by their idealized runtime: stated hardware, nothing else running.",
)
