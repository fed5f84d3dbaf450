"""Every strategy; importing this registers them."""

from capax.scaling.strategies import best_of, majority, mixture, revise, swarm, truncate

__all__ = ["best_of", "majority", "mixture", "revise", "swarm", "truncate"]
