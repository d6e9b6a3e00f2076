"""Where this machine has the C++ headers that the examples need."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["find_onnxruntime_headers"]

_SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {site} trixie main\n"


def find_onnxruntime_headers(folder: Path) -> Path | str:
    """The folder with onnxruntime_cxx_api.h, or why there is none.

    Debian has had them in a package of their own since its release 13. On an older Debian that package
    is unpacked below `folder`: headers need nothing of the system they were made for.
    """
    root = os.environ.get("ONNXRUNTIME_ROOT")
    for place in (Path(root or "/usr/local", "include"), Path("/usr/include/onnxruntime")):
        if (place / "onnxruntime_cxx_api.h").is_file():
            return place
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "the headers of ONNX Runtime are not here: set ONNXRUNTIME_ROOT"
    try:
        return _unpack_debian_package(folder)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"the headers of ONNX Runtime are not here (set ONNXRUNTIME_ROOT), nor at Debian: {said}"


def _unpack_debian_package(folder: Path) -> Path:
    site = _run(folder, "apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").splitlines()
    if not site:
        raise ValueError("apt knows no archive")
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "sources.list").write_text(_SOURCE.format(site=site[0]))
    apt = [
        "apt-get",
        "-qq",
        f"--option=Dir::Etc::sourcelist={folder}/sources.list",
        "--option=Dir::Etc::sourceparts=-",
        f"--option=Dir::State::lists={folder}/lists",
        f"--option=Dir::Cache={folder}/cache",
        "--option=APT::Sandbox::User=root",
    ]
    _run(folder, *apt, "update")
    _run(folder, *apt, "download", "libonnxruntime-dev")
    (package,) = folder.glob("libonnxruntime-dev_*.deb")
    _run(folder, "dpkg-deb", "--extract", str(package), str(folder))
    return folder / "usr/include/onnxruntime"


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
