"""Knowledge capacity: how many bits of facts a model holds (2024, arXiv 2404.05405)."""
