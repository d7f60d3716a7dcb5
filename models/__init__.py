"""Networks by name, checkpoints, matching losses, and what is trained with them.

networks.py: the registry. checkpoints.py: their files. Import the names of both from here.
"""

from models.checkpoints import (
    SCALE,
    STORAGES,
    GanCheckpoint,
    SavedClassifier,
    decode,
    load_generator,
    read_classifier,
    read_gan,
    save_classifier,
)
from models.networks import (
    ALIASES,
    GANS,
    NETWORKS,
    Classifier,
    build_classifier,
    build_gan,
    build_generator,
    describe_networks,
    network_name,
)

__all__ = [
    "ALIASES",
    "GANS",
    "NETWORKS",
    "SCALE",
    "STORAGES",
    "Classifier",
    "GanCheckpoint",
    "SavedClassifier",
    "build_classifier",
    "build_gan",
    "build_generator",
    "decode",
    "describe_networks",
    "load_generator",
    "network_name",
    "read_classifier",
    "read_gan",
    "save_classifier",
]
