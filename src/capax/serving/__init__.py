"""The HTTP server: OpenAI-compatible routes over one engine. Needs the extra `capax[serve]`."""
