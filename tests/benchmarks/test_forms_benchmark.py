"""The benchmark of forms: every form of either kind of network is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import forms
from relukan_deploy.spec import Form


@pytest.mark.slow
def test_all_forms_are_timed_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NETWORKS", "SPLINES"):
        monkeypatch.setattr(forms, name, ((2, 3, 1),))
    monkeypatch.setattr(forms, "BATCHES", (64,))
    forms.main(["--quick", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    timed = {name.split()[1].strip(",") for result in found["results"] for name in result["seconds"]}
    assert timed == set(get_args(Form))
    chosen = [(result["of"], result["chosen"].split()[0]) for result in found["results"]]
    assert chosen == [("bumps", "batch-last"), ("splines", "batch-last")]
    for entry in found["errors"]:
        assert max(entry["errors"]["fp32"].values()) < 1e-4
    assert "*" in capsys.readouterr().out
