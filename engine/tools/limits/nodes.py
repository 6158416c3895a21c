"""Probes: dynamic parallelism, and graph nodes that stream capture alone does not create."""

from __future__ import annotations

import ctypes

import numpy as np

from .lab import Graph, Lab, N
from .probe import CannotRun, Wrong, probe


@probe("dynamic parallelism", "a captured kernel that launches a kernel")
def dynamic_parallelism(lab: Lab) -> str:
    """The kernel is linked with the CUDA device runtime."""
    lab.needs(device_runtime=True)
    data, status = lab.array(), lab.array([0], np.int32)
    lab.single("launch_kernel", data, np.int32(N), status)
    lab.synchronize()
    if lab.device.read(status)[0] or lab.device.read(data)[0] != 1:
        raise CannotRun(f"it also fails without a graph: status {lab.device.read(status)[0]}")
    graph = lab.capture(lambda: lab.single("launch_kernel", data, np.int32(N), status))
    graph.launch(2)
    lab.expect("status of the launch", status, 0)
    lab.expect("data", data, np.arange(N) + 3)
    return f"{len(graph.nodes())} node, which launches one more kernel at every replay"


# -- conditional nodes ------------------------------------------------------------------------------------------------


def _conditional(lab: Lab, kind: str, size: int, before, bodies) -> Graph:
    """A graph with one conditional node. before(handle) issues the kernel that sets the condition; bodies[i]() issues
    the work of the node's body graph i."""
    driver, ask = lab.driver, lab.ask
    if not hasattr(driver, "cuGraphConditionalHandleCreate"):
        raise CannotRun("cuda-bindings has no conditional nodes: they came with CUDA 12.4")
    lab.needs(device_runtime=True)
    graph = ask(driver.cuGraphCreate, 0)
    context = ask(driver.cuCtxGetCurrent)
    handle = ask(driver.cuGraphConditionalHandleCreate, graph, context, 1, 1)  # true at the start of each replay
    lab.capture_into(graph, [], lambda: before(np.uint64(int(handle))))
    leaves = Graph(lab, graph, flags=None).nodes()
    params = driver.CUgraphNodeParams()
    params.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    params.conditional.handle, params.conditional.ctx = handle, context
    params.conditional.type = getattr(driver.CUgraphConditionalNodeType, f"CU_GRAPH_COND_TYPE_{kind}")
    params.conditional.size = size
    add = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)  # CUDA 12, CUDA 13
    ask(add, graph, leaves, None, len(leaves), params)
    for body, issue in zip(params.conditional.phGraph_out, bodies, strict=True):
        lab.capture_into(body, [], issue)
    return Graph(lab, graph)


@probe("conditional nodes", "WHILE: a body repeated until a kernel says stop")
def while_node(lab: Lab) -> str:
    """A kernel of the body calls cudaGraphSetConditional; the number of rounds is in device memory."""
    data, left = lab.array(), lab.array([5], np.int32)
    body = lambda handle: (lab.run("add_one", data), lab.single("count_down", handle, left))  # noqa: E731
    given: list = []
    graph = _conditional(lab, "WHILE", 1, given.append, [lambda: body(given[0])])
    graph.launch()
    lab.expect("data", data, np.arange(N) + 5)
    lab.device.write(left, np.array([2], np.int32))
    graph.launch()
    lab.expect("data after a replay of 2 rounds", data, np.arange(N) + 7)
    return "5 rounds, then 2 by the same graph"


@probe("conditional nodes", "IF: a value on the device decides whether the body runs")
def if_node(lab: Lab) -> str:
    """A kernel before the node sets the condition."""
    data, flag = lab.array(), lab.array([0], np.int32)
    before = lambda handle: lab.single("choose", handle, flag)  # noqa: E731
    graph = _conditional(lab, "IF", 1, before, [lambda: lab.run("add_one", data)])
    graph.launch()
    lab.expect("data with the condition 0", data, np.arange(N))
    lab.device.write(flag, np.array([1], np.int32))
    graph.launch()
    lab.expect("data with the condition 1", data, np.arange(N) + 1)
    return ""


@probe("conditional nodes", "SWITCH: a value on the device selects one of several bodies")
def switch_node(lab: Lab) -> str:
    """Needs CUDA 12.8."""
    data, which = lab.array(), lab.array([0], np.int32)
    before = lambda handle: lab.single("choose", handle, which)  # noqa: E731
    if not hasattr(lab.driver.CUgraphConditionalNodeType, "CU_GRAPH_COND_TYPE_SWITCH"):
        raise CannotRun("cuda-bindings has no SWITCH nodes: they came with CUDA 12.8")
    bodies = [lambda: lab.run("add_one", data), lambda: lab.run("times_two", data)]
    graph = _conditional(lab, "SWITCH", 2, before, bodies)
    for number in (0, 1, 2):
        lab.device.write(which, np.array([number], np.int32))
        graph.launch()
    lab.expect("data", data, 2 * (np.arange(N) + 1))
    return "body 0, body 1, and none for 2"


# -- graphs within graphs, graphs from kernels, the host --------------------------------------------------------------


def _for_kernels(lab: Lab, issue) -> Graph:
    """Capture what issue() launches as a graph that kernels can launch, and upload it."""
    lab.needs(device_runtime=True)
    flag = int(lab.driver.CUgraphInstantiate_flags.CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)
    graph = lab.capture(issue, flags=flag)
    lab.ask(lab.driver.cuGraphUpload, graph.executable, lab.stream.ptr)
    lab.synchronize()
    return graph


@probe("device-side launch", "a kernel of a graph that launches another graph")
def device_side_launch(lab: Lab) -> str:
    """cudaGraphInstantiateFlagDeviceLaunch, upload, then cudaGraphLaunch in a kernel."""
    data, status = lab.array(), lab.array([-1], np.int32)
    inner = _for_kernels(lab, lambda: lab.run("add_one", data))
    outer = lab.capture(lambda: lab.single("launch_graph", np.uint64(int(inner.executable)), status))
    outer.launch(2)
    lab.expect("status of the launch", status, 0)
    lab.expect("data", data, np.arange(N) + 2)
    return "fire and forget; two replays of the outer graph, two of the inner one"


@probe("device-side launch", "a kernel outside any graph that launches a graph")
def device_side_launch_outside(lab: Lab) -> str:
    """The kernel that launches the graph is launched on a stream."""
    data, status = lab.array(), lab.array([-1], np.int32)
    inner = _for_kernels(lab, lambda: lab.run("add_one", data))
    lab.attempt(lambda: lab.single("launch_graph", np.uint64(int(inner.executable)), status))
    lab.synchronize()
    lab.expect("status of the launch", status, 0)
    lab.expect("data", data, np.arange(N) + 1)
    return ""


@probe("child graphs", "a graph as a node of another, twice")
def child_graph(lab: Lab) -> str:
    """Two child graph nodes, then a kernel."""
    data = lab.array()
    child = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)), flags=None)
    parent, last = lab.ask(lab.driver.cuGraphCreate, 0), []
    for _ in range(2):
        last = [lab.ask(lab.driver.cuGraphAddChildGraphNode, parent, last, len(last), child.graph)]
    lab.capture_into(parent, last, lambda: lab.run("add_one", data))
    graph = Graph(lab, parent)
    graph.launch()
    lab.expect("data", data, 4 * np.arange(N) + 7)
    return f"{len(graph.nodes('GRAPH'))} child nodes"


@probe("child graphs", "a graph launched into a stream during capture")
def launch_in_capture(lab: Lab) -> str:
    """cuGraphLaunch during capture would become a child graph node."""
    data = lab.array()
    inner = lab.capture(lambda: lab.run("add_one", data))
    graph = lab.capture(lambda: (inner.start(), lab.run("times_two", data)))
    graph.launch(2)
    lab.expect("data", data, 4 * np.arange(N) + 6)
    return f"{len(graph.nodes('GRAPH'))} child node"


@probe("host functions", "a Python function called between two kernels")
def host_function(lab: Lab) -> str:
    """At every replay the function reads the first kernel's result from pinned memory."""
    data, seen = lab.array(), []
    host = np.frombuffer(lab.cupy.cuda.alloc_pinned_memory(data.nbytes), np.float32, N)
    kind = lab.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    look = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: seen.append(float(host[0])))
    # Through ctypes, because cuda-bindings drops the function after its first call (NVIDIA/cuda-python#790).
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc
    launch.argtypes = [ctypes.c_void_p] * 3

    def record() -> None:
        lab.run("add_one", data)
        lab.ask(lab.runtime.cudaMemcpyAsync, host.ctypes.data, data.data.ptr, data.nbytes, kind, lab.stream.ptr)
        lab.ask(lambda: (lab.driver.CUresult(launch(lab.stream.ptr, look, None)),))
        lab.run("times_two", data)

    graph = lab.capture(record)
    graph.launch(3)
    if seen != [1, 3, 7]:
        raise Wrong(f"the function saw {seen}, expected [1, 3, 7]")
    lab.expect("data", data, 8 * np.arange(N) + 14)
    return f"{len(graph.nodes('HOST'))} host node, called once per replay"
