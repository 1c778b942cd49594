"""Make trained PyTorch networks smaller and faster by the low-dimensional structure of their layers."""
