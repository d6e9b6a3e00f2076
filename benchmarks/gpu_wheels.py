"""Everything that `python -m benchmarks.gpu` needs besides PyTorch, for a GPU machine without a network.

    python benchmarks/gpu_wheels.py download DIR [--python 3.12]   where there is a network
    python benchmarks/gpu_wheels.py install DIR VENV               on the GPU machine

`download` leaves wheels for x86-64 Linux in numbered folders of at most 50 MiB, the most needed first,
so that they can be carried one by one; a larger wheel is cut into pieces. `install` joins them, and
makes a virtual environment that also sees the packages of the Python that runs it, such as its PyTorch.
Those of them that are new enough are not installed again, and what was not brought is left out. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_BYTES = 50 << 20
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PLATFORMS = (
    "manylinux1",
    "manylinux2010",
    "manylinux2014",
    *(f"manylinux_2_{minor}" for minor in (12, 17, 24, 27, 28)),
)

TENSORRT_RTX = "tensorrt-rtx-cu13"  # comes as a source distribution without code, and two wheels
GROUPS: tuple[tuple[str, ...], ...] = (
    (
        "msgspec",
        "rich",
        "numpy",
        "onnx",
        "ml-dtypes",
        "onnxruntime",
        "onnxscript",
        "cuda-core",
        "cuda-bindings",
        "plotly",
    ),
    (f"{TENSORRT_RTX}-bindings", f"{TENSORRT_RTX}-libs"),
    ("pykan", "matplotlib", "pandas", "pyyaml", "scikit-learn", "seaborn", "sympy", "tqdm"),
)
_PIECE = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d+)-of-(?P<count>\d+)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_wheels.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("download", help="fetch the wheels")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--python", default="3.12", metavar="X.Y", help="of the GPU machine (default 3.12)")
    command = commands.add_parser("install", help="install them into a new virtual environment")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("venv", type=Path, metavar="VENV")
    options = parser.parse_args(arguments)
    if options.command == "download":
        download(options.folder, options.python)
    else:
        install(options.folder, options.venv)


def download(folder: Path, python: str) -> None:
    """Fetches the wheels, and puts them into folders."""
    with tempfile.TemporaryDirectory() as fetched:
        wheels: dict[str, Path] = {}
        for index, group in enumerate(GROUPS):
            into = Path(fetched, str(index))
            fetch(group, into, python)
            if TENSORRT_RTX in group[0]:
                pip("wheel", "--no-deps", "--wheel-dir", str(into), "--constraint", str(CONSTRAINTS), TENSORRT_RTX)
            for wheel in sorted(into.glob("*.whl")):
                wheels.setdefault(wheel.name, wheel)
        shutil.rmtree(folder, ignore_errors=True)
        pack(list(wheels.values()), folder)
    for part in sorted(folder.iterdir(), key=lambda part: int(part.name)):
        names = sorted(file.name for file in part.iterdir())
        print(f"{part}: {sum(file.stat().st_size for file in part.iterdir()) / 2**20:.0f} MiB, {', '.join(names)}")


def fetch(packages: Sequence[str], into: Path, python: str) -> None:
    """The wheels of packages, and of those that they need."""
    platforms = [f"--platform={name}_x86_64" for name in PLATFORMS]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    pip("download", *target, "--constraint", str(CONSTRAINTS), "--dest", str(into), *packages)


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip {arguments[0]} failed:\n{done.stderr.strip()}")


def pack(wheels: Sequence[Path], folder: Path) -> None:
    """Copies wheels, in their order, into the folders 1, 2, …"""
    number, room = 0, 0
    for wheel in wheels:
        content = wheel.read_bytes()
        count = -(-len(content) // MOST_BYTES)
        for piece in range(count):
            part = content[piece * MOST_BYTES : (piece + 1) * MOST_BYTES]
            if len(part) > room:
                number, room = number + 1, MOST_BYTES
            room -= len(part)
            name = wheel.name if count == 1 else f"{wheel.name}.{piece + 1}-of-{count}"
            target = folder / str(number) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(part)


def install(folder: Path, environment: Path) -> None:
    """Makes the virtual environment, and installs into it what is in the folders."""
    with tempfile.TemporaryDirectory() as joined:
        wanted = sorted(join(folder, Path(joined)))
        if not wanted:
            sys.exit(f"{folder} holds no wheels: make gpu-wheels, and bring what it leaves in build/gpu-wheels")
        venv.create(environment, system_site_packages=True, with_pip=True, clear=True)
        python = environment / "bin" / "python"
        see_packages_of_this_python(python)
        # Without dependencies: they are among the names, and one that was not brought does not stop the others.
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--find-links", joined]
        subprocess.run([str(python), "-m", "pip", "install", *options, *wanted], check=True)


def join(folder: Path, into: Path) -> Iterator[str]:
    """Puts all wheels into one folder, and gives what they satisfy, as "NAME>=VERSION"."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    pieces: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for file in files:
        found = _PIECE.fullmatch(file.name)
        if found:
            pieces.setdefault(found["wheel"], {})[int(found["number"])] = file
            counts[found["wheel"]] = int(found["count"])
        elif file.suffix == ".whl":
            pieces[file.name], counts[file.name] = {1: file}, 1
    for name, parts in pieces.items():
        if len(parts) < counts[name]:
            print(f"{name} is left out: only {len(parts)} of its {counts[name]} pieces are in {folder}")
            continue
        with (into / name).open("wb") as wheel:
            for number in sorted(parts):
                wheel.write(parts[number].read_bytes())
        yield ">=".join(name.split("-")[:2])


def see_packages_of_this_python(python: Path) -> None:
    """Also where this Python is itself one of a virtual environment, whose packages a new one does not see."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "machine.pth").write_text(sysconfig.get_path("purelib") + "\n")


if __name__ == "__main__":
    main()
