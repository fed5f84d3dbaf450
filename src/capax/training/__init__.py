"""Recipes that need autograd: the only room that imports PyTorch."""
