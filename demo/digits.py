"""The whole way on real data: 1797 scans of handwritten digits, the 8×8 set shipped with scikit-learn.

Trains on four fifths of them, exports an ONNX graph and a TensorRT engine, verifies both, predicts
the rest and counts. Run it with `make demo`; it leaves everything in build/demo/.

    python demo/digits.py [--picture docs/demo.svg]
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path("build/demo")
LEAST_RIGHT = 0.97


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--picture", type=Path, help="also write what the terminal shows as an SVG")
    arguments = parser.parse_args()
    console = Console(record=True, width=108, force_terminal=True if arguments.picture else None, highlight=False)

    images, digits = load_digits(return_X_y=True)
    seen, unseen, seen_digits, unseen_digits = train_test_split(
        images, digits, test_size=0.2, random_state=0, stratify=digits
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_table(FOLDER / "digits.csv", seen, seen_digits)
    write_table(FOLDER / "unseen.csv", unseen, None)

    options = "--hidden 256 --grid 3 --validation 0.1"
    run(console, f"relukan-train {FOLDER}/digits.csv --target digit {options} -o {FOLDER}/digits.pt")
    run(console, f"relukan-export {FOLDER}/digits.pt --trt")
    run(console, f"relukan-verify {FOLDER}/digits --json", show=False)
    run(console, f"relukan-predict {FOLDER}/digits {FOLDER}/unseen.csv -o {FOLDER}/predicted.csv")

    with (FOLDER / "predicted.csv").open(newline="") as file:
        predicted = np.array([int(row["digit"]) for row in csv.DictReader(file)])
    right = float(np.mean(predicted == unseen_digits))
    console.print()
    show_digits(console, unseen[:11], predicted[:11])
    console.print(f"\n[bold green]{right:.1%}[/bold green] of {len(unseen)} digits that training never saw are right.")
    if arguments.picture:
        console.save_svg(str(arguments.picture), title="make demo")
    if right < LEAST_RIGHT:
        print(f"demo: error: expected at least {LEAST_RIGHT:.0%}", file=sys.stderr)
        return 1
    return 0


def write_table(path: Path, images: NDArray[np.float64], digits: NDArray[np.int64] | None) -> None:
    """One row a scan: its 64 pixels from 0 to 16, and the digit."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"pixel_{row}{column}" for row in range(8) for column in range(8)]
        writer.writerow(names if digits is None else [*names, "digit"])
        for index, image in enumerate(images.astype(int).tolist()):
            writer.writerow(image if digits is None else [*image, int(digits[index])])


def run(console: Console, command: str, *, show: bool = True) -> None:
    """Runs one of the project's commands as a user would, and shows what it says."""
    console.print(f"\n[bold]$ {command}[/bold]")
    name, *rest = shlex.split(command)
    colours = {"FORCE_COLOR": "1"} if console.is_terminal else {}
    with tempfile.TemporaryFile("w+") as output:
        code = subprocess.run(
            [str(Path(sys.executable).with_name(name)), *rest],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | colours | {"COLUMNS": "108", "TTY_INTERACTIVE": "0"},
            check=False,
        ).returncode
        output.seek(0)
        if show or code:
            console.print(Text.from_ansi(output.read().rstrip()))
        else:
            console.print("nothing is out of tolerance")
    if code:
        sys.exit(code)


def show_digits(console: Console, images: NDArray[np.float64], predicted: NDArray[np.int64]) -> None:
    """The scans in half blocks, two pixels to a character, and below them what they were taken for."""
    if console.color_system is None:
        console.print(f"The first {len(predicted)} of them: {' '.join(map(str, predicted))}")
        return
    for row in range(0, 8, 2):
        line = Text()
        for image in images:
            upper, lower = image.reshape(8, 8)[row : row + 2]
            for above, below in zip(upper, lower, strict=True):
                line.append("▀", f"{grey(above)} on {grey(below)}")
            line.append(" ")
        console.print(line, soft_wrap=True)
    console.print("".join(f"{digit:^9}" for digit in predicted).rstrip(), soft_wrap=True)


def grey(value: float) -> str:
    level = int(value / 16 * 255)
    return f"rgb({level},{level},{level})"


if __name__ == "__main__":
    sys.exit(main())
