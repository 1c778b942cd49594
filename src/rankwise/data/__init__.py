"""Data sets by name, with explicit training, validation and test splits."""
