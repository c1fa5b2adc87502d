"""pyrovae: variational autoencoders as probabilistic models, on Pyro.

Every part of a model is a module whose fields are its hyper-parameters and whose `forward` returns
a distribution. Names are imported when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
