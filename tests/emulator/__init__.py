"""Runs kernels/*.cu on the CPU: EmulatedDevice stands where CupyDevice stands on a machine with a GPU."""

from .device import EmulatedDevice
from .kernel import KernelFault

__all__ = ["EmulatedDevice", "KernelFault"]
