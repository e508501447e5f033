"""Code judged by running it: tests, sandboxes, and who runs many programs at once."""

from exprl.execution.bubblewrap import Bubblewrap
from exprl.execution.sandboxes import NoSandbox, Sandbox

__all__ = ["Bubblewrap", "NoSandbox", "Sandbox"]
