"""Consensus of a swarm: models answer, models compare the answers, strengths decide.

"Fortytwo: Swarm Inference with Peer-Ranked Consensus" (2025, arXiv 2510.24801). Choosing by quality
instead of by frequency keeps a right answer that only a minority gave.
"""
