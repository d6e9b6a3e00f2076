"""How figures, machines and reasons are written, the same in every report."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Conditions, Environment, Peaks, Point, Results
from ..timing import WIDE, Ratio, Timing

__all__ = [
    "UNSTEADY",
    "UNSTEADY_NOTE",
    "commit",
    "conditions",
    "count",
    "count_mark",
    "duration",
    "environment",
    "error",
    "interval",
    "join",
    "limit",
    "machine",
    "mean",
    "microseconds",
    "numbered",
    "peaks",
    "share",
    "size",
    "split",
    "threads",
    "time_mark",
    "times",
    "times_mark",
    "versions",
    "widths",
]

UNSTEADY = "≈"
UNSTEADY_NOTE = (
    f"{UNSTEADY} unsteady: the middle 80 % of its rounds spread over more than {100 * WIDE:.0f} % of the time"
)

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def duration(timed: Timing | float) -> str:
    """A time in seconds as "7.41 µs"; of a timing its p50, marked where it was unsteady."""
    if isinstance(timed, Timing):
        return (UNSTEADY if timed.is_unsteady else "") + duration(timed.p50)
    if timed == 0:
        return "0 µs"
    scale, unit = _scale(timed, _TIMES)
    return f"{_three(timed / scale)} {unit}"


def time_mark(seconds: float) -> str:
    """A time beside an axis: "20 µs"."""
    scale, unit = _scale(seconds, _TIMES)
    return f"{seconds / scale:.3g} {unit}"


def count_mark(value: float) -> str:
    """A number beside an axis: "20M"."""
    scale, prefix = _scale(value, _COUNTS)
    return f"{value / scale:.3g}{prefix}"


def times_mark(ratio: float) -> str:
    """A ratio beside an axis: "20 ×"."""
    return f"{ratio:.3g} ×"


def microseconds(timing: Timing) -> str:
    """The p50 as "7.41" or "88 900", marked where it was unsteady, for columns that are all in µs."""
    value = timing.p50 * 1e6
    rounded = float(f"{value:.3g}")
    number = f"{rounded:,.0f}".replace(",", " ") if rounded >= 100 else _three(rounded)
    return (UNSTEADY if timing.is_unsteady else "") + number


def mean(timing: Timing) -> str:
    """The mean and its confidence interval as "7.52 (7.41–7.62) µs"."""
    scale, unit = _scale(timing.mean, _TIMES)
    average, low, high = (_three(value / scale) for value in (timing.mean, timing.mean_low, timing.mean_high))
    return f"{average} ({low}–{high}) {unit}"


def limit(point: Point) -> str:
    """How far from the ideal network a point is, and what bounds that, as "3.2 × launch"; empty where not known."""
    if point.ideal is None or point.timing is None:
        return ""
    return f"{times(point.timing.p50 / point.ideal.seconds)} {point.ideal.bound_by}"


def split(point: Point) -> str:
    """Where a call's time goes, as "1.20 + 3.40 + 1.10 µs": to the GPU, there, and back; empty where not known."""
    if point.split is None:
        return ""
    if not (point.split.to_device or point.split.to_host):
        return f"{duration(point.split.compute)} there"
    parts = (point.split.to_device, point.split.compute, point.split.to_host)
    scale, unit = _scale(max(parts), _TIMES)
    return " + ".join(_three(part / scale) if part else "0" for part in parts) + f" {unit}"


def count(value: float) -> str:
    """A number as "135", "1.35k" or "1.35M"."""
    scale, prefix = _scale(value, _COUNTS)
    return f"{_three(value / scale)}{prefix}" if prefix else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes as "16 kB"."""
    scale, unit = _scale(count, _SIZES)
    return f"{count / scale:.3g} {unit}" if scale > 1 else f"{count:.0f} B"


def times(ratio: Ratio | float) -> str:
    """A ratio as "67 ×", "4.1 ×" or "0.45 ×"; of several rounds its median."""
    value = ratio.median if isinstance(ratio, Ratio) else ratio
    if value >= 9.95:
        return f"{value:,.0f}".replace(",", " ") + " ×"
    if value >= 0.995:
        return f"{value:.1f} ×"
    return f"{value:.2f} ×" if value >= 0.0995 else f"{value:.2g} ×"


def interval(ratio: Ratio | None) -> str:
    """A ratio and the middle 80 % of its rounds as "67 × (65–69)"; without, where they were not paired."""
    if ratio is None:
        return ""
    ends = [times(end).removesuffix(" ×") for end in (ratio.low, ratio.high)]
    return times(ratio) + (f" ({'–'.join(ends)})" if ratio.low < ratio.high else "")


def share(part: float) -> str:
    """A part of one as "12 %"."""
    return f"{part:.0%}".replace("%", " %")


def threads(number: int) -> str:
    """ "1 thread" or "4 threads"."""
    return f"{number} thread" + ("s" if number != 1 else "")


def widths(features: Sequence[int]) -> str:
    """The shape of a network as "2 → 5 → 1"."""
    return " → ".join(map(str, features))


def error(value: float) -> str:
    """An error of accuracy as "3.2e-04"."""
    return f"{value:.1e}"


def join(parts: Sequence[str]) -> str:
    """Words as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def commit(hexadecimal: str) -> str:
    """A commit as "commit 0123456789+", the sign where files differed from it."""
    return f"commit {hexadecimal[:10]}" + ("+" if hexadecimal.endswith("+") else "")


def environment(found: Environment) -> list[tuple[str, str]]:
    """Where and how was measured, as labels and lines."""
    measured = f"{found.date.replace('T', ' ').replace('+00:00', ' UTC')}, {threads(found.threads)}"
    lines = [
        ("Machine", machine(found)),
        ("Measured", measured + (f", {commit(found.commit)}" if found.commit else "")),
        ("Versions", versions(found)),
        ("Before and after", conditions(found.before, found.after)),
        *(("Peak", peaks(each)) for each in found.peaks),
        ("Command", found.command),
    ]
    return [(label, line) for label, line in lines if line]


def numbered(noun: str, index: int, results: Results) -> str:
    """ "Environment", or "Environment 2" where the results are of several."""
    return noun if len(results.environments) == 1 else f"{noun} {index + 1}"


def machine(environment: Environment) -> str:
    """One line: processor, GPU, system."""
    parts = [
        f"{environment.processor}, {environment.cores} {'core' if environment.cores == 1 else 'cores'}",
        f"{size(environment.memory_bytes)}",
    ]
    if environment.gpu:
        gpu = environment.gpu
        memory = f", {size(gpu.memory_bytes)}" if gpu.memory_bytes else ""
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        parts.append(f"{gpu.name} (compute capability {gpu.compute_capability}{memory}{driver}, CUDA {gpu.cuda})")
    return "; ".join([*parts, f"{environment.system} {environment.architecture}"])


def versions(environment: Environment) -> str:
    """One line: Python and the packages that took part."""
    return ", ".join(f"{name} {version}" for name, version in environment.versions.items())


_CONDITIONS = (
    ("load", "load", "{:.1f}"),
    ("cpu_mhz", "processor", "{:.0f} MHz"),
    ("cpu_celsius", "processor", "{:.0f} °C"),
    ("gpu_mhz", "GPU", "{:.0f} MHz"),
    ("gpu_memory_mhz", "GPU memory", "{:.0f} MHz"),
    ("gpu_celsius", "GPU", "{:.0f} °C"),
    ("gpu_watts", "GPU", "{:.0f} W"),
)


def conditions(before: Conditions, after: Conditions) -> str:
    """What was known of the machine at both ends, as "load 0.3 → 1.1, GPU 1980 → 1755 MHz"; empty where nothing was."""
    parts = []
    for field, name, form in _CONDITIONS:
        found = [value for value in (getattr(before, field), getattr(after, field)) if value is not None]
        if found:
            number, _, unit = form.partition("}")
            values = " → ".join((number + "}").format(value) for value in found)
            parts.append(f"{name} {values}{unit}")
    return ", ".join(parts)


def peaks(found: Peaks) -> str:
    """One line: what the machine does at most."""
    scale, prefix = _scale(found.flops_per_second, _COUNTS)
    return (
        f"{found.device.upper()}, {found.precision}: {_three(found.flops_per_second / scale)} {prefix}FLOP/s, "
        f"{size(found.bytes_per_second)}/s, {duration(found.launch_seconds)} for a launch"
    )


def _scale(value: float, scales: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest scale in which three digits of `value` are at least 1; the last where none is."""
    return next((each for each in scales if abs(value) >= 0.9995 * each[0]), scales[-1])


def _three(value: float) -> str:
    """Three significant digits, and no exponent: "7.40", "74.0", "740"."""
    return f"{value:.{max(0, 3 - len(str(int(abs(value) * 1.0005))))}f}"
