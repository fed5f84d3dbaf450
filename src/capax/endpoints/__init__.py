"""One way to ask any model: the engine in this process, an OpenAI-compatible server, or a pool."""

from capax.endpoints.endpoint import (
    Choice,
    Completion,
    Endpoint,
    GenerateRequest,
    Message,
    TokenScores,
)
from capax.endpoints.ledger import BudgetExceeded, Entry, Ledger, Price, Totals

__all__ = [
    "BudgetExceeded",
    "Choice",
    "Completion",
    "Endpoint",
    "Entry",
    "GenerateRequest",
    "Ledger",
    "Message",
    "Price",
    "TokenScores",
    "Totals",
]
