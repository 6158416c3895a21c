"""Runs kernels/*.cu on the CPU: EmulatedDevice takes the place of CupyDevice."""

from .device import EmulatedDevice
from .kernel import KernelFault

__all__ = ["EmulatedDevice", "KernelFault"]
