"""Declarative ablations for latent masked image modelling."""

__version__ = "0.1.0"
