"""Experiment configurations and their runner."""
