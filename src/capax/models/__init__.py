"""Architectures: configuration to recorded forward pass, one family per file."""

from capax.models.model import Model, SequenceSlice, Step
from capax.models.tensors import ModelTensors

__all__ = ["Model", "ModelTensors", "SequenceSlice", "Step"]
