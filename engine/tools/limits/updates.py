"""Probes: updates of an instantiated graph."""

from __future__ import annotations

import ctypes

import numpy as np

from .lab import THREADS, Lab, N
from .probe import CannotRun, Refused, probe


@probe("update", "the arguments of one kernel node")
def kernel_arguments(lab: Lab) -> str:
    """cuGraphExecKernelNodeSetParams replaces a captured scalar argument."""
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
    """Half the blocks change half the elements."""
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


@probe("update", "the whole graph, from another graph of the same structure")
def whole_graph(lab: Lab) -> str:
    """cuGraphExecUpdate with other arguments, and with another kernel in one node."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("add", data, np.float32(1))))
    graph.launch()
    other = lab.capture(lambda: (lab.run("times_two", data), lab.run("add", data, np.float32(100))), flags=None)
    lab.ask(lab.driver.cuGraphExecUpdate, graph.executable, other.graph)
    graph.launch()
    lab.expect("data", data, 2 * (np.arange(N) + 2) + 100)
    return "x + 1 + 1, then 2 x + 100"


@probe("update", "an added node, by cuGraphExecUpdate")
def node_added(lab: Lab) -> str:
    """The other graph has one more kernel."""
    data = lab.array()
    graph = lab.capture(lambda: lab.run("add_one", data))
    other = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)), flags=None)
    return _updated(lab, graph, other, data, 2 * (np.arange(N) + 1))


@probe("update", "a removed node, by cuGraphExecUpdate")
def node_removed(lab: Lab) -> str:
    """The other graph has one kernel less."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)))
    other = lab.capture(lambda: lab.run("add_one", data), flags=None)
    return _updated(lab, graph, other, data, np.arange(N) + 1)


def _updated(lab: Lab, graph, other, data, right: np.ndarray) -> str:
    try:
        lab.ask(lab.driver.cuGraphExecUpdate, graph.executable, other.graph)
    except Refused as e:
        e.detail = "the changed graph must be instantiated again"
        raise
    graph.launch()
    lab.expect("data", data, right)
    return ""


@probe("update", "a node disabled and enabled again")
def node_disabled(lab: Lab) -> str:
    """cuGraphNodeSetEnabled is the closest thing to removing a node."""
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
