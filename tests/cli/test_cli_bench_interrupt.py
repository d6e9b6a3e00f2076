"""Ctrl-C while relukan-bench measures, where whatever runs just then swallows it."""

from __future__ import annotations

import contextlib
import signal

import pytest

from relukan_deploy.cli.bench import _saying


def test_an_interrupt_that_was_swallowed_counts_before_the_next_thing_is_done() -> None:
    with contextlib.suppress(KeyboardInterrupt), _saying() as say:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            say("next")


def test_an_interrupt_that_was_swallowed_in_the_end_counts_too() -> None:
    with pytest.raises(KeyboardInterrupt), _saying(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_afterwards_an_interrupt_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _saying() as say:
        say("something")
    assert signal.getsignal(signal.SIGINT) is before
