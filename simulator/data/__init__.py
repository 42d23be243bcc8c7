"""Data sets: one file a family; `load(name, ...)` finds them by name."""

from .catalogue import load
from .dataset import Dataset, Split

__all__ = ["Dataset", "Split", "load"]
