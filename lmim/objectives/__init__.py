"""What is trained, one file each; the names are the config's `objective`."""

from lmim.objectives.latent_mim import LatentMIM
from lmim.objectives.raw_pixels import RawPixels

Objective = LatentMIM | RawPixels

OBJECTIVES: dict[str, type[Objective]] = {
    "latent_mim": LatentMIM,
    "raw_pixels": RawPixels,
}
