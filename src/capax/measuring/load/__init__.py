"""Load on a running server: open-loop arrivals, streams timed token by token, vLLM's summary."""
