"""Data sets: one file a family; `load(name, ...)` finds them by name."""
