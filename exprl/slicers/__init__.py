"""Slicers: from a rollout to the segments a process reward scores."""

from exprl.slicers.base import Slicer
from exprl.slicers.delimiter import DelimiterSlicer
from exprl.slicers.token_window import TokenWindowSlicer

__all__ = ["DelimiterSlicer", "Slicer", "TokenWindowSlicer"]
