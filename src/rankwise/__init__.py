"""Make trained PyTorch networks smaller and faster: any ``nn.Module`` in, plain torch modules out."""

__version__ = "0.1.0"
