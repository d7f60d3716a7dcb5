"""Readers of the sets' file formats: paths of one split -> (images uint8 (N, C, H, W), labels (N,))."""

import gzip
import pickle
from pathlib import Path

import numpy as np


def read_cifar_python(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's python version: pickles, to be read only after their MD5 has been checked."""
    batches = [pickle.loads(path.read_bytes(), encoding="latin1") for path in paths]
    labels = [batch["fine_labels" if "fine_labels" in batch else "labels"] for batch in batches]
    return np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32), np.concatenate(labels)


def read_cifar_binary(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's binary version: rows of one label byte and 3 x 32 x 32 pixels."""
    rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in paths])
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_idx(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's format, gzipped or not: 16 header bytes before 28 x 28 images, 8 before labels."""
    images, labels = (
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths
    )
    images = np.frombuffer(images, np.uint8, offset=16)
    return images.reshape(-1, 1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def read_svhn(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """SVHN's cropped digits: X (32, 32, 3, N) and y (N, 1), in which the digit 0 is labelled 10."""
    from scipy.io import loadmat

    file = loadmat(paths[0])
    return file["X"].transpose(3, 2, 0, 1), file["y"].reshape(-1).astype(np.int64) % 10
