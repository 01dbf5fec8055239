"""Colours changed at random, on the host: jitter, grey and blur, as contrastive learning sees its views."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import UInt8
from PIL import ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lmim.data.reading import num_threads

JITTERED, GREYED, BLURRED = 0.8, 0.2, 0.5
"""The parts of the images that are."""
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
"""Brightness, contrast and saturation change by a factor of 1 +- so much, the hue by +- so much of a turn."""
SIGMA = (0.1, 2.0)
"""The blur's, in pixels of an image of `SIDE`."""
SIDE = 224


def draw_colours(images: int, generator: torch.Generator) -> dict[str, Tensor]:
    """What is random about the colours of some images, a row each: what changes, how much, in which order."""
    return {
        "colours": torch.rand(images, 8, generator=generator),
        "colour_order": torch.rand(images, 4, generator=generator).argsort(dim=1),
    }


def change_colours(images: UInt8[Tensor, "b c s s"], drawn: Mapping[str, Tensor]) -> UInt8[Tensor, "b c s s"]:
    """The images with their colours changed as CMAE's target view (arXiv 2207.13532).

    The blur is that of images of 224 pixels, scaled with the side. Of grey images hue and saturation stay.
    """
    with ThreadPoolExecutor(num_threads()) as pool:
        changed = pool.map(_change, images, drawn["colours"].tolist(), drawn["colour_order"].tolist())
        return torch.stack(list(changed))


def _change(image: Tensor, colours: Sequence[float], order: Sequence[int]) -> Tensor:
    jittered, *amounts, greyed, blurred, sigma = colours
    picture, side = F.to_pil_image(image), image.shape[-1]
    for which in order if jittered < JITTERED else ():
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[which]
        amount = STRENGTHS[which] * (2 * amounts[which] - 1)
        picture = change(picture, amount if change is F.adjust_hue else 1 + amount)
    if greyed < GREYED:
        picture = F.rgb_to_grayscale(picture, num_output_channels=len(image))
    if blurred < BLURRED:
        least, most = SIGMA
        picture = picture.filter(ImageFilter.GaussianBlur((least + (most - least) * sigma) * side / SIDE))
    found: Tensor = F.pil_to_tensor(picture)
    return found
