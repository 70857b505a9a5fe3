"""The parity check: it passes on the original networks' outputs, and fails on anything else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from unavglip_jax.config import InputError
from unavglip_jax.convert import parity
from unavglip_jax.models import layers

VECTORS = Path(__file__).parent / "vectors"
FULL = Path(
    os.environ.get("UNAVGLIP_PARITY", Path(__file__).parent.parent.parent / "shared/parity")
)
LATER = ("latentsync_unet", "diff2lip", "diffdub")  # systems whose networks are still to come


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in VECTORS.rglob("manifest.json")), ids=lambda p: p.name
)
def test_tiny_networks_equal_the_originals(folder):
    row = parity.check_folder(folder)
    assert row.verdict == "pass", row
    assert row.error <= 1e-4 and row.left_over == 0
    assert row.consumed == len(json.loads((folder / "manifest.json").read_text())["keys"])


@pytest.mark.full
@pytest.mark.skipif(not FULL.is_dir(), reason="the full-size vectors are not beside this clone")
def test_full_size_networks_equal_the_originals():
    for folder in sorted(p.parent for p in FULL.rglob("manifest.json")):
        row = parity.check_folder(folder)
        print(row)
        assert row.verdict == ("no network yet" if folder.name.startswith(LATER) else "pass"), row


@pytest.fixture
def tiny(tmp_path):
    """A copy of the tiny adapter vectors, to be spoilt."""
    return Path(shutil.copytree(VECTORS / "unavglip_tiny", tmp_path / "spoilt"))


def rewrite(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_key_too_many_fails_and_is_counted(tiny):
    rewrite(tiny, lambda m: m["keys"].update({"unet.conv_in.extra": [3]}))
    row = parity.check_folder(tiny)
    assert row.verdict.startswith("FAIL") and "1 unknown (conv_in.extra)" in row.verdict
    assert row.left_over == 1


def test_a_missing_key_fails(tiny):
    rewrite(tiny, lambda m: m["keys"].pop("unet.conv_out.bias"))
    assert "1 missing (conv_out.bias)" in parity.check_folder(tiny).verdict
    assert not parity.check(tiny)


@pytest.mark.parametrize("name", ["out", "id_tokens", "unheard_of"])
def test_other_outputs_fail(tiny, name):
    outputs = dict(np.load(tiny / "io.npz"))
    outputs[name] = outputs.get(name, outputs["out"]) * 1.001
    np.savez(tiny / "io.npz", **outputs)
    assert parity.check_folder(tiny).verdict == "FAIL"


def test_a_wrong_network_fails(monkeypatch):
    relu = layers.jax.nn.relu
    monkeypatch.setattr(layers.jax.nn, "relu", lambda x: relu(x) + 1e-3)
    assert parity.check_folder(VECTORS / "s3fd").verdict == "FAIL"


def test_a_network_that_is_not_there_yet_is_listed(tmp_path):
    manifest = {"seed": 0, "inputs": {}, "keys": {"conv_in.weight": [4, 4, 3, 3]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert parity.check_folder(tmp_path).verdict == "no network yet"
    assert parity.check(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no vector folder"):
        parity.check(tmp_path)


def test_the_rule():
    assert parity.weight("bn.num_batches_tracked", (), 0) == 0
    assert (parity.weight("bn.running_var", (50,), 0) >= 1).all()
    assert abs(parity.weight("norm.weight", (10_000,), 0).mean() - 1) < 0.01
    assert abs(parity.weight("norm.bias", (10_000,), 0).std() - 0.1) < 0.01
    assert abs(parity.weight("fc.weight", (100, 400), 0).std() - 0.05) < 0.002
    assert (parity.weight("a", (3,), 0) != parity.weight("a", (3,), 1)).all()
    assert parity.normal("x", (2, 3), 0).dtype == parity.uniform("x", (2, 3), 0).dtype == np.float32
