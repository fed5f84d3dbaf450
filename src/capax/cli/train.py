"""`capax train`: recipes that need PyTorch."""

from __future__ import annotations

from capax.cli.lazy import LazyGroup

command = LazyGroup(
    "train",
    table={
        "landmark": ("train_landmark", "Train a small model with landmark attention."),
        "retention": ("train_retention", "Train the gates of a bounded KV cache (trim)."),
        "knowledge": ("train_knowledge", "Train a small model that learns people by heart."),
        "text": ("train_text", "Train a small model, and its tokenizer, on text."),
        "arithmetic": ("train_arithmetic", "Train a tiny model that multiplies."),
        "procbench": ("train_procbench", "Train a tiny model that follows one procedure."),
        "swarm": ("train_swarm", "Train tiny models that answer, and judge each other."),
        "players": ("train_players", "Train tiny models that play generated tasks."),
        "ladder": ("train_ladder", "Train the reference models of a density ruler."),
        "rethink": ("train_rethink", "Train a tiny model that adds and corrects itself."),
    },
    help="Train small parts that methods need (needs the extra 'train').",
)
