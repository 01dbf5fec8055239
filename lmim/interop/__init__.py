"""Weights in and out: the checkpoints of Latent MIM's and of MAE's authors, timm's models, the hub's folders.

    python -m lmim.interop import official.pth --scale paper
    python -m lmim.interop export results/trials/<id> --to timm|hf --out FOLDER

Nothing here unpickles code.
"""

from lmim.interop.official import load_mae, load_official
from lmim.interop.timm_models import TimmEncoder, to_timm

__all__ = ["TimmEncoder", "load_mae", "load_official", "to_timm"]
