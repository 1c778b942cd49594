"""Streaming, mergeable, weighted accumulators of what calibration asks for."""
