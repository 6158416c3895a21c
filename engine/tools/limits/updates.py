"""Probes: what of an instantiated graph can be changed without making it anew."""

from __future__ import annotations

import ctypes

import numpy as np

from .lab import THREADS, Lab, N
from .probe import CannotRun, Refused, probe


@probe("update", "the arguments of one kernel node")
def kernel_arguments(lab: Lab) -> str:
    """cuGraphExecKernelNodeSetParams puts another number in place of a captured one."""
    data = lab.array()
    graph = lab.capture(lambda: lab.run("add", data, np.float32(1)))
    graph.launch()
    (node,) = graph.nodes("KERNEL")
    params = lab.ask(lab.driver.cuGraphKernelNodeGetParams, node)
    pointer, value, n = ctypes.c_uint64(data.data.ptr), ctypes.c_float(10), ctypes.c_int(N)
    words = (ctypes.c_void_p * 3)(*(ctypes.addressof(word) for word in (pointer, value, n)))
    params.kernelParams = ctypes.addressof(words)
    lab.ask(lab.driver.cuGraphExecKernelNodeSetParams, graph.executable, node, params)
    graph.launch()
    lab.expect("data", data, np.arange(N) + 11)
    return "add 1, then add 10"


@probe("update", "the grid of one kernel node")
def kernel_grid(lab: Lab) -> str:
    """Half as many blocks change half as many elements."""
    data = lab.array(range(4 * THREADS))
    graph = lab.capture(lambda: lab.run("add_one", data))
    (node,) = graph.nodes("KERNEL")
    params = lab.ask(lab.driver.cuGraphKernelNodeGetParams, node)
    params.gridDimX = 2
    pointer, n = ctypes.c_uint64(data.data.ptr), ctypes.c_int(4 * THREADS)
    words = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(n))
    params.kernelParams = ctypes.addressof(words)
    lab.ask(lab.driver.cuGraphExecKernelNodeSetParams, graph.executable, node, params)
    graph.launch()
    lab.expect("data", data, np.arange(4 * THREADS) + (np.arange(4 * THREADS) < 2 * THREADS))
    return ""


@probe("update", "the whole graph, by another one of the same shape")
def whole_graph(lab: Lab) -> str:
    """cuGraphExecUpdate: other arguments, and another kernel in the place of one."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("add", data, np.float32(1))))
    graph.launch()
    other = lab.capture(lambda: (lab.run("times_two", data), lab.run("add", data, np.float32(100))), flags=None)
    lab.ask(lab.driver.cuGraphExecUpdate, graph.executable, other.graph)
    graph.launch()
    lab.expect("data", data, 2 * (np.arange(N) + 2) + 100)
    return "x + 1 + 1, then 2 x + 100"


@probe("update", "a node more, by cuGraphExecUpdate")
def node_added(lab: Lab) -> str:
    """The other graph has a kernel more."""
    data = lab.array()
    graph = lab.capture(lambda: lab.run("add_one", data))
    other = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)), flags=None)
    return _updated(lab, graph, other, data, 2 * (np.arange(N) + 1))


@probe("update", "a node less, by cuGraphExecUpdate")
def node_removed(lab: Lab) -> str:
    """The other graph has a kernel less."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)))
    other = lab.capture(lambda: lab.run("add_one", data), flags=None)
    return _updated(lab, graph, other, data, np.arange(N) + 1)


def _updated(lab: Lab, graph, other, data, right: np.ndarray) -> str:
    try:
        lab.ask(lab.driver.cuGraphExecUpdate, graph.executable, other.graph)
    except Refused as e:
        e.detail = "such a graph is instantiated anew"
        raise
    graph.launch()
    lab.expect("data", data, right)
    return ""


@probe("update", "a node switched off and on again")
def node_disabled(lab: Lab) -> str:
    """cuGraphNodeSetEnabled: the nearest thing to removing one."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)))
    node = graph.nodes("KERNEL")[0]
    if not hasattr(lab.driver, "cuGraphNodeSetEnabled"):
        raise CannotRun("cuda-bindings has no cuGraphNodeSetEnabled")
    for enabled in (0, 1):
        lab.ask(lab.driver.cuGraphNodeSetEnabled, graph.executable, node, enabled)
        graph.launch()
    lab.expect("data", data, 2 * (2 * np.arange(N) + 1))
    return "without the first kernel, then with it"
