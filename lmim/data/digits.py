"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

import hashlib

import numpy as np

from lmim.config import Data
from lmim.data.splits import Dataset, from_arrays
from lmim.errors import UserError


def digits(data: Data) -> Dataset:
    """The last quarter tests: it is by other writers. Val is held out of the rest."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data.name: digits come with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    # sixteen levels of grey and white
    images = np.rint(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train = len(images) * 3 // 4
    arrays = {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }
    version = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]
    return from_arrays(data, version, arrays, classes=10, flips=False)
