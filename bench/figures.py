"""A figure, its floor measured in the same run, and how figures are taken."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    unit: str
    floor: str
    """What the floor is: the same work with nothing of ours in it; empty where there is none."""
    floor_value: float | None
    reach: str
    """What is aimed at, in words."""
    reached: bool | None
    """Whether it was reached; nothing where the figure is only reported."""

    @property
    def ratio(self) -> float | None:
        """Value over floor."""
        return None if not self.floor_value else self.value / self.floor_value

    def as_json(self) -> dict[str, object]:
        """For ``bench/results.json``."""
        return {**asdict(self), "ratio": self.ratio}


def per_cpu_second(work: Callable[[], object], *, seconds: float = 1.5, rounds: int = 3) -> float:
    """Best rate of ``work`` per second of this process's CPU time, over some rounds."""
    work()
    best = 0.0
    for _ in range(rounds):
        count, started = 0, time.process_time()
        while (used := time.process_time() - started) < seconds / rounds:
            for _ in range(20):
                work()
            count += 20
        best = max(best, count / used)
    return best


def median_seconds(work: Callable[[], object], *, times: int) -> float:
    """Median wall time of ``work``."""
    samples = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = ""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"cpu": model, "cores": os.cpu_count()}
