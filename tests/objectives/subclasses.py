"""Objectives of a user's own: Latent MIM with some methods of theirs."""


def of_latent_mim(name: str, methods: str) -> str:
    """The source of a file with the class; its constructor names the sections that it reads, as it must."""
    return f"""
import os
from lmim.objectives.latent_mim import LatentMIM

class {name}(LatentMIM):
    def __init__(self, setup, *, encoder, projector, collapse, loss, mask, decoder):
        super().__init__(setup, encoder=encoder, projector=projector, collapse=collapse, loss=loss, mask=mask,
            decoder=decoder)
{methods}"""
