"""Test-time compute: spend a token budget so that it buys correct answers."""
