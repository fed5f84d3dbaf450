"""Generated tasks with exact truth and a difficulty knob. See `instance` and `study`."""

from capax.scaling.complex.families import FAMILIES, family_named
from capax.scaling.complex.instance import Family, Instance, generate

__all__ = ["FAMILIES", "Family", "Instance", "family_named", "generate"]
