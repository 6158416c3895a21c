"""Speed of the NumPy backend compared with BLAS, on 1 thread and on all, on an idle and on a busy machine.

    python tests/numpy_rates.py [--tokens 512] [--busy 10] [--rounds 3]

Prints one line per round: tokens/s of prefill and of decode, and the prefill rate as a share of sgemm's, measured in
the same round with the same number of threads. Rounds with 1 and N threads alternate, so that other load affects both.
The model has random weights and the shape of smollm2-135m.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ostinato.config import EngineConfig, SamplingParams
from ostinato.ops import threads
from ostinato.ops.numpy import NumpyOps
from ostinato.ops.threads import Team
from ostinato.run.batch import Batch
from ostinato.run.load import weights
from ostinato.run.runner import Runner
from ostinato.run.sequence import Request, Sequence
from ostinato.tools.bench.synthetic import checkpoint, shape


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sgemm(team: Team) -> float:
    """FLOP/s of BLAS with one product per thread; the best of five."""
    a = np.random.default_rng(0).random((1024, 1024), np.float32)
    taken = [seconds(lambda: team.run(team.count, lambda _: a @ a, lambda i, product: None)) for _ in range(5)]
    return 2 * 1024**3 * team.count / min(taken)


def spin() -> None:
    """Keep one core busy."""
    while True:
        pass


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that each keep one core busy."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def measure(on: Runner, ops: NumpyOps, team: Team, tokens: int, decoded: int) -> tuple[float, float, float]:
    """(tokens/s of prefill, tokens/s of decode, FLOP/s of prefill over those of sgemm)."""
    ops.use(team)
    prompt = np.random.default_rng(1).integers(0, on.c.vocab, tokens).tolist()
    batch, times = Batch(on), [time.perf_counter()]
    batch.scheduler.add(Sequence(Request(prompt, SamplingParams(), 0, 1 + decoded, ())))
    while not batch.idle:
        times += [time.perf_counter() for _ in batch.step()]
    layer = sum(w.size for name, w in vars(on.w.layers[0]).items() if name != "rope" and getattr(w, "ndim", 0) == 2)
    of, layers = on.c.sizes, on.c.layer_count
    work = 2 * tokens * layer * layers + 2 * tokens**2 * of.heads * of.head_dim * layers
    prefill = times[1] - times[0]
    return tokens / prefill, decoded / (times[-1] - times[1]), work / prefill / sgemm(team)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=512, help="of the prompt")
    p.add_argument("--decoded", type=int, default=10, help="tokens generated after it")
    p.add_argument("--busy", type=int, default=0, help="processes beside, each of which wants a core")
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    ops = NumpyOps()
    c = replace(shape("smollm2-135m"), max_len=args.tokens + args.decoded + 64)
    on = Runner(ops, c, weights(ops, checkpoint(c, ops.device, ops.dtype), c), EngineConfig(max_batch=1, graph="off"))
    teams = {count: Team(count) for count in sorted({1, threads.threads()})}
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in teams}
    measure(on, ops, teams[1], 64, 2)
    with busy(args.busy):
        for _ in range(args.rounds):
            for count, team in teams.items():
                found[count].append(measure(on, ops, team, args.tokens, args.decoded))
                prompt, decode, share = found[count][-1]
                line = f"prompt {prompt:.1f} tokens/s, {share:.0%} of sgemm; decode {decode:.2f} tokens/s"
                print(f"{count} threads: {line}", flush=True)
    for count, rounds in found.items():
        prompt, decode, share = map(statistics.median, zip(*rounds, strict=True))
        print(f"median of {count} threads: prompt {prompt:.1f}, {share:.0%} of sgemm; decode {decode:.2f}")


if __name__ == "__main__":
    main()
