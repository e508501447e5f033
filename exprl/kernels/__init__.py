"""Log-prob, entropy, KL and policy loss over large vocabularies and long sequences; see docs/kernels.md.

Every function has one meaning and several backends (`auto`, `triton`, `eager`, `compile`); none needs the rest of
exprl. What computes is loaded when it is first named, so options can name a backend without loading torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
