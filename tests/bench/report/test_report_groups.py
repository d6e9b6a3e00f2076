"""What is compared with what, and the figures that come of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import example_results as examples
import pytest

from relukan_deploy.bench.report.finding import finding, left_out
from relukan_deploy.bench.report.groups import Line, groups, machines
from relukan_deploy.bench.results import Contender, Gpu, Point, Results, Series
from relukan_deploy.bench.timing import summarise

WIDTHS = (2, 5, 1)


def timed(
    network: str, seconds: float, *, widths: tuple[int, ...] = WIDTHS, environment: int = 0, **way: str
) -> Series:
    """A series of one batch whose rounds all took so long."""
    contender = Contender(network, widths, **{"engine": "onnxruntime-cpu", **way})  # type: ignore[arg-type]
    return Series(contender, environment, 10, None, (Point(1, summarise([[[seconds], [seconds]]])),))


def results(*series: Series, environments: int = 1) -> Results:
    each = examples.environment()
    return Results("model", tuple(dataclasses.replace(each, command=str(i)) for i in range(environments)), series)


def line(found: Results, name: str) -> Line:
    (group,) = groups(found)
    return next(line for line in group.lines if line.name == name)


def test_the_baseline_is_our_fastest_with_the_rows_in_the_same_place() -> None:
    found = results(
        timed("this network", 4.0),
        timed("this network", 2.0, engine="tensorrt"),
        timed("this network", 0.5, data="bound"),
        timed("pykan", 6.0, engine="torch"),
        timed("pykan", 6.0, data="bound"),
    )
    assert line(found, "pykan: torch").ratios[1].median == 3.0
    assert line(found, "pykan: onnxruntime-cpu, graph alone").ratios[1].median == 12.0
    assert line(found, "this network: onnxruntime-cpu").ratios[1].median == 2.0
    assert line(found, "this network: tensorrt, no CUDA graph").baseline == {1}


def test_the_baseline_computes_in_the_precision_of_the_peers() -> None:
    found = results(
        timed("this network", 2.0), timed("this network", 1.0, precision="fp16"), timed("pykan", 6.0, engine="torch")
    )
    assert line(found, "pykan: torch").ratios[1].median == 3.0


def test_without_float32_the_fastest_of_any_precision_is_the_baseline() -> None:
    found = results(timed("this network", 1.0, precision="fp16"), timed("pykan", 6.0, engine="torch"))
    assert line(found, "pykan: torch").ratios[1].median == 6.0


def test_without_ours_there_is_no_ratio() -> None:
    assert line(results(timed("pykan", 6.0)), "pykan: onnxruntime-cpu").ratios == {}


def with_rounds(series: Series, rounds: list[list[float]]) -> Series:
    timing = summarise([[[seconds] for seconds in run] for run in rounds])
    return dataclasses.replace(series, points=(Point(1, timing),))


def test_ratios_are_taken_round_by_round_where_both_took_turns() -> None:
    ours = with_rounds(timed("this network", 1.0), [[1.0, 10.0, 1.0]])
    theirs = with_rounds(timed("pykan", 1.0, engine="torch"), [[3.0, 20.0, 5.0]])
    found = line(results(ours, theirs), "pykan: torch").ratios[1]
    assert found.median == statistics.median([3.0, 2.0, 5.0])
    assert found.low < found.median < found.high


@pytest.mark.parametrize("environment", [0, 1])
def test_ratios_are_of_p50_where_the_rounds_do_not_belong_together(environment: int) -> None:
    ours = with_rounds(timed("this network", 1.0), [[1.0, 10.0, 1.0]])
    rounds = [[3.0, 20.0, 5.0]] if environment else [[3.0, 20.0], [5.0]]
    theirs = with_rounds(timed("pykan", 1.0, engine="torch", environment=environment), rounds)
    found = line(results(ours, theirs, environments=2), "pykan: torch").ratios[1]
    assert (found.median, found.low, found.high) == (5.0, 5.0, 5.0)


def test_an_mlp_with_other_hidden_widths_is_compared_with_ours() -> None:
    found = results(timed("this network", 1.0), timed("mlp, same parameters", 2.0, widths=(2, 30, 1)))
    assert line(found, "mlp, same parameters: onnxruntime-cpu").ratios[1].median == 2.0


def test_of_two_networks_of_ours_with_the_same_ends_it_belongs_to_that_of_its_own_process() -> None:
    found = results(
        timed("this network", 1.0),
        timed("this network", 10.0, widths=(2, 9, 1), environment=1),
        timed("mlp, same parameters", 20.0, widths=(2, 30, 1), environment=1),
        environments=2,
    )
    large = next(group for group in groups(found) if group.widths == (2, 9, 1))
    assert large.lines[1].ratios[1].median == 2.0


def test_machines_are_never_compared() -> None:
    found = groups(examples.several_results())
    assert [group.title for group in found] == [
        "2 → 5 → 1, Example 9000 48-Core Processor",
        "4 → 64 → 64 → 1, Example 9000 48-Core Processor",
        "2 → 5 → 1, Other 7 Processor",
        "4 → 64 → 64 → 1, Other 7 Processor",
    ]
    assert [group.environments for group in found] == [(0,), (0,), (1,), (1,)]


def test_a_python_that_does_not_see_the_gpu_is_on_the_same_machine() -> None:
    made = examples.gpu_results()
    (machine,) = machines(dataclasses.replace(made, environments=made.environments[::-1]))
    assert machine.gpu is not None
    assert len(groups(made)) == 1


def test_two_gpus_are_two_machines_even_beside_a_python_that_sees_none() -> None:
    made = examples.environment(gpu=True)
    other = dataclasses.replace(made, gpu=Gpu("Another GPU", "8.0", "13.0"))
    blind = dataclasses.replace(made, gpu=None)
    found = Results("model", (blind, made, other), ())
    assert [each.gpu.name for each in machines(found) if each.gpu] == ["Example GPU 80GB", "Another GPU"]


def test_other_threads_are_not_compared() -> None:
    base = results(timed("this network", 1.0), timed("this network", 0.5, environment=1), environments=2)
    one, four = base.environments
    found = groups(dataclasses.replace(base, environments=(one, dataclasses.replace(four, threads=4))))
    assert [group.title.rpartition(", ")[2] for group in found] == ["1 thread", "4 threads"]


def test_what_is_called_alike_is_told_apart_by_its_environment() -> None:
    found = results(timed("this network", 1.0), timed("this network", 0.5, environment=1), environments=2)
    (group,) = groups(found)
    assert [line.name for line in group.lines] == [
        "this network: onnxruntime-cpu (environment 1)",
        "this network: onnxruntime-cpu (environment 2)",
    ]


@pytest.mark.parametrize("make", [examples.cpu_results, examples.gpu_results])
def test_of_many_lines_a_few_are_shown_first_one_of_each_network_at_least(make: Callable[[], Results]) -> None:
    (group,) = groups(make())
    chosen = group.chosen()
    assert len(group.lines) > 25
    assert len(chosen) <= 12
    assert {line.network for line in chosen} == set(group.networks)
    assert any(line.baseline for line in chosen)
    assert "pykan: torch" in [line.name for line in chosen]


def test_few_lines_are_all_shown() -> None:
    (group,) = groups(examples.small_results())
    assert group.chosen() == list(group.lines)


# --- in words


def test_the_finding_is_said_with_its_numbers() -> None:
    (group,) = groups(
        results(timed("this network", 7.41e-6), timed("pykan", 496e-6, engine="torch"), timed("pykan", 74.1e-6))
    )
    ((first, second),) = finding(group)
    assert first == "With rows in host memory, this network answers one row in 7.41 µs (onnxruntime-cpu)."
    assert second == "At batch 1 the fastest way found to run each other network takes 10 × (pykan) as long."


def test_the_finding_names_the_way_that_the_most_rows_a_second_take() -> None:
    slow, fast = timed("this network", 1e-6), timed("this network", 2e-6, engine="torch.compile")
    many = (Point(1024, summarise([[[seconds], [seconds]]])) for seconds in (9e-3, 1e-3))
    both = (dataclasses.replace(each, points=(*each.points, next(many))) for each in (slow, fast))
    (group,) = groups(results(*both))
    ((first,),) = finding(group)
    assert first.endswith("1.00 µs (onnxruntime-cpu); the most is 1.02M rows a second, at batch 1024 (torch.compile).")


def test_the_finding_names_a_faster_precision_beside_the_baseline() -> None:
    (group,) = groups(results(timed("this network", 2e-6), timed("this network", 1e-6, precision="fp16")))
    ((first,),) = finding(group)
    assert "in 2.00 µs (onnxruntime-cpu), or 1.00 µs (onnxruntime-cpu, fp16)." in first


def test_there_is_a_finding_for_the_host_and_one_for_the_gpu() -> None:
    (group,) = groups(examples.gpu_results())
    assert [sentences[0].partition(",")[0] for sentences in finding(group)] == [
        "With rows in host memory",
        "With rows on the GPU",
    ]


def test_nothing_of_ours_is_no_finding() -> None:
    (group,) = groups(results(timed("pykan", 1.0)))
    assert finding(group) == []


def test_what_was_left_out_is_listed_once_for_each_reason() -> None:
    made = examples.cpu_results()
    listed = left_out(made, groups(made))
    assert listed[: len(made.skipped)] == list(made.skipped)
    assert ("pykan: torch, batch 16384 and 65536", "a call with 16384 rows takes 1.4 s, more than 1") in [
        (each.what, each.why) for each in listed
    ]
    assert len(listed) == len(set(listed))
