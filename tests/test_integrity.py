import hashlib

import pytest
import torch

import smask
from smask import integrity, manifest, reconstruction
from smask.errors import IntegrityError


@pytest.mark.clause("I-01")
def test_digest_is_over_names_dtypes_shapes_and_bytes() -> None:
    tensors = {"a": torch.tensor([[1.0, 2.0]]).T, "n": torch.tensor(3)}
    by_hand = b"a\0F32\x002,1\0" + bytes.fromhex("0000803f00000040") + b"n\0I64\0\0" + (3).to_bytes(8, "little")
    assert integrity.digest(tensors) == hashlib.sha256(by_hand).hexdigest()


def test_strides_of_a_single_number_do_not_matter() -> None:
    wide = torch.arange(6.0).reshape(2, 3)
    for tensor in (torch.tensor(5.0).expand(1), torch.tensor(5.0).expand(1, 1), wide[1:, 2:], wide[:, 1], wide.T):
        want = torch.tensor(tensor.tolist())
        assert integrity.digest({"a": tensor}) == integrity.digest({"a": want})
        assert smask.open_base({"a": tensor}).digest == smask.open_base({"a": want}).digest


def test_any_difference_changes_the_digest() -> None:
    plain = integrity.digest({"a": torch.zeros(2)})
    for other in (
        {"b": torch.zeros(2)},
        {"a": torch.zeros(2, 1)},
        {"a": torch.zeros(2).half()},
        {"a": -torch.zeros(2)},
    ):
        assert integrity.digest(other) != plain


@pytest.mark.clause("I-02")
def test_verify_says_yes_and_no(found: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    smask.save(found, tmp_path / "a.smask")
    good = smask.verify(tmp_path / "a.smask")
    assert good.same
    assert good.digest == good.expected == smask.inspect(tmp_path / "a.smask").digest
    assert (good.device, good.generator) == ("cpu", "cpu")
    # A device whose arithmetic is off by one bit.
    exact = reconstruction.bases.sign_bytes
    monkeypatch.setattr(reconstruction.bases, "sign_bytes", lambda *a, **k: exact(*a, **k) ^ 1)
    bad = smask.verify(tmp_path / "a.smask")
    assert not bad.same
    assert bad.digest != bad.expected == good.expected


@pytest.mark.clause("C-05")
def test_every_flipped_bit_is_found(found: torch.nn.Module) -> None:
    data = smask.encode(found.state_dict(), found.smask_recipe)
    blobs_start = (
        len(data) - 32 - sum(b.n_bytes for b in manifest.open_file(data, limits=smask.Limits()).manifest.blobs)
    )
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(smask.SmaskError) as caught:
            smask.decode(bytes(damaged))
        if position >= blobs_start:
            assert isinstance(caught.value, IntegrityError)
