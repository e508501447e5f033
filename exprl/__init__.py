"""exprl: RL mid-training with hidden reference solutions (ExpRL, arXiv:2606.17024).

What `__init__.pyi` lists can be imported from here. Each name is loaded when it is first used: `import exprl` costs
nothing, and its slicers load no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
