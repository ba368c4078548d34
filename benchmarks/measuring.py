"""Interleaved rounds: every contender runs once a round, so that other load on the machine affects all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Summary(NamedTuple):
    """Summary of one contender's rounds.

    Attributes:
        median: median of the rounds.
        low: lowest round.
        high: highest round.
        relative: median of the ratios to the reference in the same round, or of the differences from it.
    """

    median: float
    low: float
    high: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contenders that were measured in the same rounds.

    Attributes:
        title: name of the measured quantity.
        unit: unit of the values.
        reference: the contender that the others are compared with.
        rounds: contender -> one value a round.
        relation: whether ratios to the reference or differences from it are compared.
    """

    title: str
    unit: str
    reference: str
    rounds: Mapping[str, Sequence[float]]
    relation: Literal["ratio", "difference"] = "ratio"

    def summary(self, name: str) -> Summary:
        """Return the summary of a contender's rounds."""
        values = self.rounds[name]
        if self.relation == "ratio":
            relative = median(self.ratios(name))
        else:
            pairs = zip(values, self.rounds[self.reference], strict=True)
            relative = median(value - reference for value, reference in pairs)
        return Summary(median(values), min(values), max(values), relative)

    def ratios(self, name: str) -> list[float]:
        """Return the ratio of a contender to the reference in each round."""
        pairs = zip(self.rounds[name], self.rounds[self.reference], strict=True)
        return [value / reference for value, reference in pairs]


def run_rounds(contenders: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round; each round starts with the next contender.

    Returns:
        Contender -> its return values, one a round.
    """
    names = list(contenders)
    results: dict[str, list[T]] = {name: [] for name in names}
    tqdm.monitor_interval = 0  # no monitor thread may run while loaders fork their workers
    with tqdm(total=rounds * len(names), unit=" runs", leave=False, disable=None) as bar:
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                bar.set_description(name)
                results[name].append(contenders[name]())
                bar.update()
    return results
