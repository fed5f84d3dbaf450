"""Sequences, scheduling and the `LLM` that users meet."""
