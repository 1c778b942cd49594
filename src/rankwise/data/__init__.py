"""Data sets by name, with explicit training, validation and test splits."""

from rankwise.data.augment import CropFlip
from rankwise.data.dataset import Augmentation, Batches, DataSet, InMemory, Source, Split
from rankwise.data.load import DATA, data_root, load_data
from rankwise.data.preprocessing import PREPROCESSINGS, Preprocessing, Transform, get_preprocessing

__all__ = [
    "DATA",
    "PREPROCESSINGS",
    "Augmentation",
    "Batches",
    "CropFlip",
    "DataSet",
    "InMemory",
    "Preprocessing",
    "Source",
    "Split",
    "Transform",
    "data_root",
    "get_preprocessing",
    "load_data",
]
