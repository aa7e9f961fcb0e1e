"""Timing of implementations in turn: medians, spreads, ratios.

Two numerical libraries in one process compete for its threads, so every implementation gets a
process, which waits while another one works. A round runs each of them once: machines slow down
and speed up, and rounds in turn spread that over all.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from common.processes import Here, Process

Start = Callable[..., Process | Here]


class Implementation(Protocol):
  """One program that does the work; it is built from the workload."""

  def warm_up(self) -> dict[str, Any]:
    """Runs everything that must not be timed.

    Returns:
      'device', 'precision', 'compile_seconds' and 'num_programs'; None where unknown.
    """
    ...

  def ceiling(self) -> float:
    """FLOP/s of a large matrix product on this implementation's device, in its precision."""
    ...

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    """Does the work, or in each round a share of it.

    Returns:
      'seconds', 'amount' (units of work done), 'parts' (seconds by stage), 'compile_seconds' (None
      where unknown) and 'answers': arrays with one row for each of their 'indices', which
      implementations are compared by.
    """
    ...

  def peak_bytes(self) -> dict[str, int | None]:
    """Peak memory of the 'process' and of the 'device', None where unknown."""
    ...


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Everything that implementations returned.

  Attributes:
    warm_ups, peak_bytes: by name of the implementation.
    ceilings, rounds: of every round, by name.
  """

  warm_ups: dict[str, dict[str, Any]]
  ceilings: list[dict[str, float]]
  rounds: list[dict[str, dict[str, Any]]]
  peak_bytes: dict[str, dict[str, int | None]]

  @property
  def ceiling(self) -> float:
    """FLOP/s of matrix products; the library nearest to the device's limit shows it."""
    return max(statistics.median(each[name] for each in self.ceilings) for name in self.warm_ups)

  def of(self, name: str) -> list[dict[str, Any]]:
    """An implementation's results, by round."""
    return [results[name] for results in self.rounds]

  def differences(self, one: str, other: str) -> dict[str, float]:
    """Median of ‖a - b‖ / ‖b‖ by kind of answer; of whole numbers, the share that differs."""
    apart: dict[str, list[float]] = {}
    for left, right in zip(self.of(one), self.of(other), strict=True):
      ours, theirs = left['answers'], right['answers']
      at = {int(index): n for n, index in enumerate(ours['indices'])}
      for name in theirs.keys() & ours.keys() - {'indices'}:
        for n, index in enumerate(theirs['indices']):
          if int(index) in at:
            pair = ours[name][at[int(index)]], theirs[name][n]
            apart.setdefault(name, []).append(_difference(*map(np.asarray, pair)))
    return {name: statistics.median(values) for name, values in sorted(apart.items())}


def measure(
  targets: Mapping[str, str], workload: Any, rounds: int, start: Start = Process
) -> Measurement:
  """Runs implementations in turn.

  Args:
    targets: by name, `module:class` of an `Implementation`.
    workload: argument of the classes.
    rounds: runs of each.
    start: `Process`, or `Here` to stay in this process.
  """
  running: dict[str, Process | Here] = {}
  warm_ups, ceilings, results = {}, [], []
  try:
    for name, target in targets.items():
      running[name] = start(target, workload)
      warm_ups[name] = running[name].call('warm_up')
    for number in range(rounds):
      ceilings.append({})
      results.append({})
      for name in list(running) if number % 2 == 0 else reversed(running):
        ceilings[-1][name] = running[name].call('ceiling')
        results[-1][name] = running[name].call('round', number, rounds)
    peak_bytes = {name: each.call('peak_bytes') for name, each in running.items()}
  finally:
    for each in running.values():
      each.close()
  return Measurement(warm_ups, ceilings, results, peak_bytes)


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Median and range of all rounds."""
  middle = statistics.median(values)
  return {'median': middle, 'min': min(values), 'max': max(values), 'rounds': list(values)}


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
  """How many times as fast ours is: the ratio of the medians, and the range over the rounds.

  Args:
    ours, theirs: seconds, as of `spread`.
  """
  pairs = zip(ours['rounds'], theirs['rounds'], strict=True)
  by_round = [their / our for our, their in pairs]
  middle = theirs['median'] / ours['median']
  return {'ratio': middle, 'min': min(by_round), 'max': max(by_round)}


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  if np.issubdtype(b.dtype, np.integer):
    return float((a != b).mean())
  a, b = a.astype(np.float64), b.astype(np.float64)
  return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
