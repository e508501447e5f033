"""The row operations and the policy loss as Triton kernels, one kernel a file. Importing this needs Triton."""

from exprl.kernels.fused.operations import TRITON
from exprl.kernels.fused.policy_loss import policy_loss

__all__ = ["TRITON", "policy_loss"]
