"""Accuracy, agreement, latency and size of a model, beside its original."""
