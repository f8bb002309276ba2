"""How benchmarks time variants fairly: in turns whose order rotates, compared within a round."""

import statistics
import time


def interleaved(steps, batch, rounds):
    """{name: [(wall, processor seconds) per round]}; the order of the steps rotates from round to round."""
    names, times = list(steps), {name: [] for name in steps}
    for name in names:
        steps[name](*batch)
    for i in range(rounds):
        for name in names[i % len(names):] + names[:i % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name](*batch)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def ratio(times, slow, fast, clock):
    """Median over rounds of slow / fast by one clock (0 wall, 1 processor)."""
    return statistics.median(a[clock] / b[clock] for a, b in zip(times[slow], times[fast], strict=True))
