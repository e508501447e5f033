"""exprl: RL mid-training with hidden reference solutions (ExpRL, arXiv:2606.17024)."""

__version__ = "0.1.0"
