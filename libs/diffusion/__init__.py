"""Diffusion arithmetic on tensors and callables: noise schedules, denoisers, losses, guidance, samplers.

Time is t in [0, 1], t = 0 clean data; step n of N is t = n/N. Nothing here knows networks, data or configs.
"""
from . import colour, guidance, loss, samplers
from .denoiser import Denoiser, Estimate
from .schedule import schedule
from .time_sampling import time_sampler

__all__ = ["Denoiser", "Estimate", "colour", "guidance", "loss", "samplers", "schedule", "time_sampler"]
