"""What is said of networks trained on the same data."""

from __future__ import annotations

import dataclasses

import example_results as examples

from relukan_deploy.bench.report.finding import accuracy_finding
from relukan_deploy.bench.results import Accuracy


def of(network: str, hidden: int, error: float, seconds: dict[int, float]) -> Accuracy:
    return Accuracy(network, (2, hidden, 1), 1, "torch", 0, error, 1.0, seconds, compared_at=0.1)


def said(*accuracies: Accuracy) -> list[str]:
    return accuracy_finding(dataclasses.replace(examples.cpu_results(), accuracies=accuracies))


def test_the_fastest_of_each_network_that_reaches_the_error_is_told_for_each_batch() -> None:
    found = said(
        of("mlp", 8, 0.09, {1: 3e-6, 1024: 4e-5}),
        of("this network", 2, 0.1, {1: 1e-6, 1024: 9e-5}),
        of("this network", 4, 0.01, {1: 2e-6, 1024: 2e-5}),
        of("this network", 1, 0.2, {1: 5e-7, 1024: 1e-5}),
    )
    level = "With an error of at most 1.0e-01, the fastest at"
    assert found == [
        f"{level} batch 1: 1.00 µs (this network, 2 → 2 → 1) and 3.00 µs (mlp, 2 → 8 → 1).",
        f"{level} batch 1024: 20.0 µs (this network, 2 → 4 → 1) and 40.0 µs (mlp, 2 → 8 → 1).",
    ]


def test_who_never_reaches_it_is_told_too() -> None:
    others = of("mlp", 8, 0.3, {1: 1e-6}), of("mlp", 9, 0.4, {1: 1e-6}), of("pykan", 2, 0.2, {1: 1e-6})
    found = said(*others, of("this network", 2, 0.1, {1: 2e-6}))
    assert found == [
        "With an error of at most 1.0e-01, the fastest at batch 1: 2.00 µs (this network, 2 → 2 → 1).",
        "None so accurate was found of mlp (the best has 3.0e-01) and pykan (the best has 2.0e-01).",
    ]


def test_a_batch_that_was_not_timed_does_not_count() -> None:
    found = said(of("mlp", 8, 0.1, {1: 1e-6}), of("mlp", 16, 0.1, {1: 2e-6, 1024: 3e-5}))
    assert [sentence.split(": ")[1] for sentence in found] == [
        "1.00 µs (mlp, 2 → 8 → 1).",
        "30.0 µs (mlp, 2 → 16 → 1).",
    ]


def test_nothing_trained_is_nothing_said() -> None:
    assert said() == []
