"""Choosing one candidate per layer under a budget."""
