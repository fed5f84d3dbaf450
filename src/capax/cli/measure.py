"""`capax measure`: what a model is worth per unit of capacity."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "measure",
    table={
        "capacity": ("measure_capacity", "Bits of text saved per unit of compute."),
        "density": ("measure_density", "Quality per parameter, and how fast it grows."),
        "runtime": ("measure_runtime", "Price queries by their idealized runtime."),
        "kv": ("measure_kv", "KV methods side by side: quality, bytes, speed, needles."),
        "compress": ("compress", "Compress a file with a model's probabilities."),
        "decompress": ("decompress", "Restore a file that 'compress' wrote."),
        "knowledge": ("measure_knowledge", "Bits of facts that a trained model holds."),
        "sweep": ("measure_sweep", "Score a model in several encodings on several texts."),
        "procbench": ("measure_procbench", "Steps of a given procedure that a model follows."),
        "list": ("measure_list", "List what was measured."),
        "show": ("measure_show", "Show a record."),
        "compare": ("measure_compare", "Put comparable records side by side."),
        "plot": ("measure_plot", "Draw a figure of several records."),
        "export": ("measure_export", "Write tables as lm-evaluation-harness does."),
        "leaderboard": ("measure_leaderboard", "Write a page of all records of a folder."),
    },
    help="Measure what a model is worth per unit of capacity.",
)
