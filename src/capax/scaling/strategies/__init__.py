"""Ways to spend more than one sample on an answer, without anyone who knows what is right.

"Think Deep, Think Fast" (2025, arXiv 2504.14047) compares them at equal tokens. `strategy` is the
seam: every strategy asks through a `Purse`, which no strategy can overdraw.
"""
