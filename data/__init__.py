"""Image sets: the table of known sets, their readers, the held-out split, and batches.

Import these names from `data` itself.
"""

from data.batches import balanced_epochs, class_batches, epoch_order, split_held_out, steps_per_epoch
from data.images import SPLITS, Data, DataInfo, ImageSet, fingerprint, to_float, to_uint8
from data.loading import add_folder_flags, check_data_dir, load_data
from data.pictures import check_different, list_pictures, match_classes, read_pictures
from data.sets import DATASETS, NAMES

__all__ = [
    "DATASETS",
    "NAMES",
    "SPLITS",
    "Data",
    "DataInfo",
    "ImageSet",
    "add_folder_flags",
    "balanced_epochs",
    "check_data_dir",
    "check_different",
    "class_batches",
    "epoch_order",
    "fingerprint",
    "list_pictures",
    "load_data",
    "match_classes",
    "read_pictures",
    "split_held_out",
    "steps_per_epoch",
    "to_float",
    "to_uint8",
]
