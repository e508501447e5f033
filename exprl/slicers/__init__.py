"""Slicers: from a rollout to the segments a process reward scores."""

from exprl.slicers.base import ScoredSlicer, Slicer
from exprl.slicers.change_point import ChangePointSlicer
from exprl.slicers.delimiter import DelimiterSlicer
from exprl.slicers.token_window import TokenWindowSlicer

__all__ = ["ChangePointSlicer", "DelimiterSlicer", "ScoredSlicer", "Slicer", "TokenWindowSlicer"]
