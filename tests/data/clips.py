"""Clips of a user's own: a square that crosses the image, its side the class; every frame differs."""

MOVING = """
import numpy as np
from lmim.data.splits import from_arrays

def moving(data, *, length: int = 8, count: int = 300):
    side, rng = data.image_size, np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", count), ("test", 80)):
        labels = np.arange(number) % 3
        images = np.full((number, length, 1, side, side), 20, np.uint8)
        for i, (top, left) in enumerate(rng.integers(0, side, (number, 2))):
            for t in range(length):
                rows = (np.arange(2 + labels[i]) + top + t) % side
                columns = (np.arange(2 + labels[i]) + left + t) % side
                images[i, t, 0, rows[:, None], columns] = 200 + t
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return from_arrays(data, f"moving {length} {count} {side}", arrays, classes=3, flips=False)
"""
