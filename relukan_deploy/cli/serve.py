"""relukan-serve: an inference server for bundles."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import InputError
from ..runtime import BACKENDS
from ..runtime.guard import Nonfinite, OutOfDomain
from ..runtime.serving import needing_packages
from ._command import count, make_parser, run

if TYPE_CHECKING:
    from ..runtime.serving.server import Settings

logger = logging.getLogger("relukan_deploy.serving")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "relukan-serve",
        "Serves bundles over HTTP, and over gRPC if asked to, in the Open Inference Protocol of Triton and KServe. "
        "New versions of a bundle are picked up meanwhile. Ctrl-C or SIGTERM ends it once it has answered what came.",
    )
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+", help="folder that relukan-export wrote")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="name to serve a bundle under, once for each (default: its folder's)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--http-port", type=_port, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--grpc-port", type=_port, help="serves gRPC too")
    parser.add_argument("--metrics-port", type=_port, help="serves /metrics there too, without a key")
    parser.add_argument("--workers", type=count, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--max-batch", metavar="ROWS", type=count, default=1024, help="default: %(default)s")
    parser.add_argument(
        "--max-delay", metavar="SECONDS", type=_seconds, default=0.0, help="to wait for a batch to fill (default: 0)"
    )
    parser.add_argument(
        "--max-queue", metavar="ROWS", type=count, default=65536, help="that may wait (default: %(default)s)"
    )
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    parser.add_argument("--threads", type=_threads, default=1, help="of ONNX Runtime on a CPU, or auto (default: 1)")
    parser.add_argument(
        "--out-of-domain", choices=get_args(OutOfDomain), default="count", help="what a value outside it leads to"
    )
    parser.add_argument(
        "--nonfinite", choices=get_args(Nonfinite), default="count", help="what NaN or infinity leads to"
    )
    parser.add_argument("--api-key-file", type=Path, help="keys, one a line, of which each request has to bring one")
    parser.add_argument("--max-request-bytes", metavar="BYTES", type=count, default=64 << 20, help="default: 64 MiB")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return run(parser, _serve, argv)


def _serve(arguments: argparse.Namespace) -> None:
    with needing_packages():
        from ..runtime.serving.server import log_to_stderr, serve
    settings = _settings(arguments)
    log_to_stderr(settings.log_level)
    if not settings.api_keys and not _is_loopback(settings.host):
        logger.warning(
            "whoever reaches %s may ask: there is no --api-key-file, and nothing is encrypted", settings.host
        )
    serve(settings)


def _settings(arguments: argparse.Namespace) -> Settings:
    from ..runtime.serving.server import Settings
    from ..runtime.serving.store import Options

    return Settings(
        bundles=_names(arguments.bundles, arguments.name),
        options=Options(
            backend=arguments.backend,
            threads=arguments.threads,
            max_batch=arguments.max_batch,
            max_delay=arguments.max_delay,
            max_queue=arguments.max_queue,
            out_of_domain=arguments.out_of_domain,
            nonfinite=arguments.nonfinite,
        ),
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        workers=arguments.workers,
        api_keys=() if arguments.api_key_file is None else _read_keys(arguments.api_key_file),
        max_request_bytes=arguments.max_request_bytes,
        log_level=arguments.log_level,
    )


def _names(bundles: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The bundles by name.

    Raises:
        InputError: there are more or fewer names than bundles, or two are the same.
    """
    from ..runtime.serving.store import by_name

    if names and len(names) != len(bundles):
        raise InputError(
            f"--name is given {len(names)} times for {len(bundles)} bundles: give it once for each, or not at all"
        )
    named: dict[str, Path] = {}
    for bundle, name in zip(bundles, names or [next(iter(by_name(bundle))) for bundle in bundles], strict=True):
        if name in named:
            raise InputError(f"{named[name]} and {bundle} would both be served as {name!r}: tell them apart by --name")
        named[name] = bundle
    return named


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not keys:
        raise InputError(f"{path} holds no key: write one a line, such as openssl rand -hex 32 gives")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be seconds from 0 on, got {text}")


def _threads(text: str) -> int | Literal["auto"]:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be auto or a whole number from 1 on, got {text}")
    return "auto" if text == "auto" else count(text)
