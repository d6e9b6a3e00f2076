"""Results in files: what is written is read again, and what is damaged is refused with the file's name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import HOST, environment, results, series, steady

from relukan_deploy.bench.results import (
    Accuracy,
    Conditions,
    Contender,
    Data,
    Environment,
    Gpu,
    Ideal,
    Peaks,
    Point,
    Results,
    Series,
    Skipped,
    Split,
    Startup,
)
from relukan_deploy.bench.stored import merge, read, to_json
from relukan_deploy.bench.timing import Timing
from relukan_deploy.errors import InputError
from relukan_deploy.spec import Layout, Precision

ONE = results(series(HOST, {1: steady(1e-5), 64: steady(3e-5)}))

# --- any results

number = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(1e-12, 1e6)
count = st.integers(0, 2**62)
maybe = st.none() | number
widths = st.lists(st.integers(1, 10**6), min_size=2, max_size=4).map(tuple)
precision, layout, data = (st.sampled_from(get_args(kind)) for kind in (Precision, Layout, Data))
rounds = st.lists(st.lists(seconds, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
timing = st.builds(Timing, *[seconds] * 7, spread=number, calls=count, rounds=rounds)
contender = st.builds(Contender, st.text(), widths, st.text(), precision, st.none() | layout, data, st.booleans())
split = st.none() | st.builds(Split, number, number, number)
bound_by = st.sampled_from(("arithmetic", "memory", "launch"))
ideal = st.none() | st.builds(Ideal, number, number, number, bound_by)
measured = st.builds(Point, st.integers(1, 2**40), timing=timing, split=split, ideal=ideal)
points = st.lists(measured | st.builds(Point, st.integers(1, 9), skipped=st.text(min_size=1)), max_size=2).map(tuple)
conditions = st.builds(Conditions, *[maybe] * 7)
gpu = st.none() | st.builds(Gpu, st.text(), st.text(), st.text(), st.none() | st.text(), st.none() | count)
peaks = st.lists(st.builds(Peaks, st.sampled_from(("cpu", "gpu")), precision, number, number, number), max_size=2)
environments = st.builds(
    Environment,
    *(st.text(), st.text(), st.none() | st.text(), st.text(), count, count, st.text(), st.text(), gpu),
    versions=st.dictionaries(st.text(), st.text(), max_size=2),
    threads=count,
    before=conditions,
    after=conditions,
    peaks=peaks.map(tuple),
)


def listed(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=2).map(tuple)


@st.composite
def any_results(draw: st.DrawFn) -> Results:
    places = tuple(draw(st.lists(environments, min_size=1, max_size=2)))
    place = st.integers(0, len(places) - 1)
    startup = st.builds(
        Startup, st.text(), place, st.text(), count, maybe, number, number, number, count, st.none() | count
    )
    accuracy = st.builds(
        Accuracy, *(st.text(), widths, count, st.text(), place, number, number),
        seconds=st.dictionaries(count, number, max_size=2), compared_at=number,
    )  # fmt: skip
    return Results(
        draw(st.text()),
        places,
        draw(listed(st.builds(Series, contender, place, count, maybe, points))),
        draw(listed(startup)),
        draw(listed(accuracy)),
        draw(listed(st.builds(Skipped, st.text(), st.text()))),
    )


@given(any_results())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, given: Results) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(to_json(given), encoding="utf-8")
    assert read(path) == given


@given(any_results())
def test_merging_what_is_there_already_adds_nothing(given: Results) -> None:
    once = merge([given])
    assert dataclasses.replace(merge([once, once]), bundle="") == dataclasses.replace(once, bundle="")


# --- numbers and text that JSON has not


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        to_json(results(environments=(environment(before=Conditions(load=value)),)))


def test_a_path_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(to_json(dataclasses.replace(ONE, bundle="bu\udcffndle")), encoding="utf-8")
    assert read(tmp_path / "a.json").bundle == "bu?ndle"


# --- files that are no results


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.json") == "cannot be read: No such file or directory"


def test_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == "cannot be read: Is a directory"


@pytest.mark.parametrize("text", ["", "batch p50\n1 19", "\x00", "{", "[" * 100_000, '{"a": NaN}'])
def test_what_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    message = refused(tmp_path / "a.json")
    assert message.startswith("is not JSON, or only the beginning of it: ")
    assert message.endswith("Measure again: relukan-bench BUNDLE --json > FILE")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off(tmp_path: Path, share: float) -> None:
    text = to_json(ONE)
    (tmp_path / "a.json").write_text(text[: int(share * len(text))])
    assert "only the beginning of it" in refused(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"schema": 1}', '{"schema": 1, "series": []}'])
def test_other_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert refused(tmp_path / "a.json").startswith("is JSON, but not what relukan-bench wrote. Measure again")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_schema_version(tmp_path: Path, version: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**json.loads(to_json(ONE)), "schema": version, "news": []}))
    assert refused(tmp_path / "a.json") == (
        f"has schema version {version!r}, this release reads 1: upgrade relukan-deploy: pip install -U relukan-deploy"
    )


def point_of(content: Any) -> Any:
    return content["series"][0]["points"][0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content["series"][0].pop("parameters"), "missing required field `parameters`"),
        (lambda content: point_of(content).update(batch="1"), "Expected `int`, got `str`"),
        (lambda content: content["series"][0].update(environment=1), "an environment that is missing"),
        (lambda content: content.update(environments=[]), "an environment that is missing"),
        (lambda content: point_of(content).update(batch=0), "has no time at 0 rows"),
        (lambda content: point_of(content).update(timing=None), "has no time at 1 rows, and no reason"),
        (lambda content: point_of(content)["timing"].update(rounds=[]), "has no rounds at 1 rows"),
        (lambda content: point_of(content)["timing"].update(rounds=[[1e-5], []]), "has no rounds at 1 rows"),
        (lambda content: point_of(content)["timing"].update(p50=0.0), "takes no time at 1 rows"),
        (lambda content: point_of(content)["timing"]["rounds"][0].append(-1.0), "takes no time at 1 rows"),
        (lambda content: content["series"][0]["contender"].update(data="disk"), "Invalid enum value 'disk'"),
    ],
)
def test_a_damaged_file(tmp_path: Path, change: Callable[[Any], object], expected: str) -> None:
    content = json.loads(to_json(ONE))
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    message = refused(tmp_path / "a.json")
    assert message.startswith("is damaged: ")
    assert expected in message
    assert message.endswith("Measure again: relukan-bench BUNDLE --json > FILE")


# --- merging


def test_series_of_different_environments_are_kept_apart() -> None:
    other = dataclasses.replace(ONE, environments=(environment(processor="Another CPU"),))
    found = merge([ONE, other])
    assert [place.processor for place in found.environments] == ["Some CPU", "Another CPU"]
    assert [each.environment for each in found.series] == [0, 1]
    assert {each.contender for each in found.series} == {HOST}


def test_the_same_measurement_in_two_files_is_kept_once() -> None:
    other = dataclasses.replace(ONE, bundle="other", environments=(environment(processor="Another CPU"),))
    both = merge([ONE, other])
    assert merge([ONE, ONE]) == ONE
    assert merge([both, ONE, other]) == both


def test_a_second_measurement_of_the_same_machine_is_kept() -> None:
    later = dataclasses.replace(ONE, environments=(environment(date="2026-03-01T12:00:01+00:00"),))
    assert len(merge([ONE, later]).series) == 2


def test_everything_is_joined_and_points_to_its_environment() -> None:
    startup = Startup("onnxruntime-cpu", 0, "model.onnx", 2000, None, 0.1, 0.2, 0.01, 1 << 27, None)
    accuracy = Accuracy("pykan", (2, 5, 1), 100, "torch", 0, 0.01, 3.0, {1: 1e-3}, 0.05)
    first = dataclasses.replace(ONE, skipped=(Skipped("pykan", "it is not installed"),))
    second = results(
        *(series(dataclasses.replace(HOST, engine="torch"), {1: steady(1e-4)}),),
        environments=(environment(threads=2),),
        startups=(startup,),
        accuracies=(accuracy,),
        skipped=(Skipped("relu-kan", "it is slow"), Skipped("pykan", "it is not installed")),
    )
    found = merge([first, second])
    assert [each.environment for each in found.series] == [0, 1]
    assert (found.startups[0].environment, found.accuracies[0].environment) == (1, 1)
    assert [each.what for each in found.skipped] == ["pykan", "relu-kan"]


def test_the_bundles_are_named_once_each() -> None:
    named = [dataclasses.replace(ONE, bundle=name) for name in ("a", "b", "a", "a, b")]
    assert merge(named).bundle == "a, b"


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to merge, expected at least one file"):
        merge([])
