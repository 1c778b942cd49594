"""Reference networks by name."""
