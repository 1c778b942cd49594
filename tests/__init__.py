"""Tests of rankwise; the folders mirror ``src/rankwise``."""
