"""Model files in and out: formats, tokenizers, chat templates, registry."""
