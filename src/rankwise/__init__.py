"""Make trained PyTorch networks smaller and faster: any ``nn.Module`` in, plain torch modules out."""

from rankwise.auto import Automatic, tradeoff
from rankwise.budget import Budget
from rankwise.compress import Compression, compress, compression
from rankwise.errors import RankwiseError
from rankwise.io import load, read_plan, save
from rankwise.methods import methods
from rankwise.plan import Edit, Plan, plan_of
from rankwise.reapply import apply

__version__ = "0.1.0"

__all__ = [
    "Automatic",
    "Budget",
    "Compression",
    "Edit",
    "Plan",
    "RankwiseError",
    "apply",
    "compress",
    "compression",
    "load",
    "methods",
    "plan_of",
    "read_plan",
    "save",
    "tradeoff",
]
