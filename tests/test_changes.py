"""Changes of training images: moved, mirrored, without a square, mixed."""

from __future__ import annotations

import pytest
import torch

from smask.search import changes, data
from smask.search.tasks import Classification


def test_shifted_images() -> None:
    x = torch.arange(2 * 3 * 7 * 9).float().view(2, 3, 7, 9)
    moved = changes.shifted(x, 2, torch.Generator().manual_seed(4))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    for image in range(2):
        candidates = [padded[image, :, r : r + 7, c : c + 9] for r in range(5) for c in range(5)]
        assert sum(torch.equal(moved[image], candidate) for candidate in candidates) == 1


def test_mirrored_images() -> None:
    x = torch.arange(60 * 2 * 3 * 5).view(60, 2, 3, 5)
    turned = changes.mirrored(x, torch.Generator().manual_seed(1))
    same = [torch.equal(a, b) for a, b in zip(turned, x, strict=True)]
    assert 15 < sum(same) < 45
    assert all(torch.equal(a, b.flip(2)) for a, b, s in zip(turned, x, same, strict=True) if not s)
    dataset = data.Dataset("d", x.byte(), torch.arange(60) % 2, x.byte(), torch.arange(60) % 2)
    one, two, plain = (data.Batches(dataset, batch_size=60, seed=0, flip=flip) for flip in (True, True, False))
    assert torch.equal(next(iter(one))[0], next(iter(two))[0])
    assert one.fingerprint() == two.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("n_pixels", [1, 4, 7])
def test_images_without_a_square(n_pixels: int) -> None:
    x = 1 + torch.rand(500, 3, 7, 9)
    mean = torch.tensor([-1.0, -2.0, -3.0])[:, None, None]
    less = changes.erased(x, n_pixels, mean, torch.Generator().manual_seed(4))
    hidden = (less == mean).all(1)
    assert torch.equal(torch.where(hidden[:, None], mean, x), less)
    sizes, centres = set(), set()
    for image in hidden:
        rows, columns = (image.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
        assert torch.equal(image.nonzero(), torch.cartesian_prod(torch.tensor(rows), torch.tensor(columns)))
        assert len(rows) == rows[-1] - rows[0] + 1
        sizes.add((len(rows), len(columns)))
        centres.add((rows[0], columns[0]))
    most = (n_pixels, n_pixels)  # less where a part of a square lies outside, but never less than a quarter
    assert max(sizes) == most
    assert min(sizes) >= (-(-n_pixels // 2), -(-n_pixels // 2))
    assert len(centres) > 20


def test_erased_squares_are_of_the_mean() -> None:
    x = torch.tensor([10, 200, 30], dtype=torch.uint8)[None, :, None, None].expand(40, 3, 8, 8).contiguous()
    x[::4, 1] = 100
    dataset = data.Dataset("test", x, torch.arange(40) % 2, x[:2], torch.arange(2))
    batches = data.Batches(dataset, batch_size=40, seed=1, erase=4)
    got = next(iter(batches))[0] * 255
    assert {round(v) for v in got[:, 1].unique().tolist()} == {100, 175, 200}
    assert {round(v) for v in got[:, 0].unique().tolist()} == {10}
    same, other = (data.Batches(dataset, batch_size=40, seed=1, erase=n) for n in (4, 5))
    assert batches.fingerprint() == same.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("sides", "n_pixels", "want"), [((8, 8), 6, [6, 6]), ((8, 12), 4, [4, 6]), ((9, 3), 2, [6, 2])]
)
def test_resized_images(sides: tuple[int, int], n_pixels: int, want: list[int]) -> None:
    x = torch.rand(5, 3, *sides)
    small = changes.resized(x, n_pixels)
    assert list(small.shape) == [5, 3, *want]
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)), atol=0.08, rtol=0)
    flat = x[:, :, :1, :1].expand_as(x)
    torch.testing.assert_close(changes.resized(flat, n_pixels), flat[:, :, : want[0], : want[1]])
    last = x.contiguous(memory_format=torch.channels_last)
    assert changes.resized(last, n_pixels).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(changes.resized(last, n_pixels), small)


def test_images_are_small_in_the_first_passes() -> None:
    x = torch.arange(40 * 3 * 8 * 6).remainder(251).to(torch.uint8).view(40, 3, 8, 6)
    dataset = data.Dataset("test", x, torch.arange(40), x[:2], torch.arange(2))
    sizes = ((3, 0.25), (4, 0.5))
    batches, whole = (data.Batches(dataset, batch_size=16, seed=1, flip=True, sizes=s) for s in (sizes, ()))
    assert batches.fingerprint() != whole.fingerprint()
    for part, shape in ((0, (4, 3)), (0.2, (4, 3)), (0.25, (5, 4)), (0.49, (5, 4)), (0.5, (8, 6)), (0.9, (8, 6))):
        batches.set_progress(part)
        whole.set_progress(part)
        for (small, y), (large, labels) in zip(batches, whole, strict=True):
            assert (small.shape[2:], large.shape[2:]) == (shape, (8, 6))
            assert torch.equal(y, labels)  # the same draws
            assert torch.equal(small, large if shape == (8, 6) else changes.resized(large, min(shape)))


def test_mixed_images() -> None:
    """A rectangle of the image before, in a part of the images; targets count its pixels."""
    n = 400
    x = torch.arange(n * 3 * 8 * 10).view(n, 3, 8, 10)
    y = torch.eye(n)
    got, targets = changes.mixed(x, y, 0.5, torch.Generator().manual_seed(4))
    theirs = (got != x).all(1)
    assert torch.equal(torch.where(theirs[:, None], x.roll(1, 0), x), got)
    parts = theirs.float().mean((1, 2))
    torch.testing.assert_close(targets, torch.diag(1 - parts) + torch.diag(parts.roll(-1)[:-1], -1) + corner(n, parts))
    for image in theirs:
        rows, columns = (image.any(dim) for dim in (1, 0))
        assert torch.equal(image, rows[:, None] & columns)
        assert int(rows.diff().sum()) <= 2
        assert int(columns.diff().sum()) <= 2
    assert 0.4 < float((parts > 0).float().mean()) < 0.55  # some rectangles have no pixel
    # Uniform parts have a mean of a half, what lies outside the image left out.
    assert 0.25 < float(parts[parts > 0].mean()) < 0.45
    assert float(parts.max()) > 0.8


def corner(n: int, parts: torch.Tensor) -> torch.Tensor:
    """What the first image has of the last."""
    found = torch.zeros(n, n)
    found[0, -1] = parts[0]
    return found


@pytest.mark.parametrize(("chance", "n_least", "n_most"), [(0.0, 0, 0), (1.0, 80, 100)])
def test_chance_of_mixed_images(chance: float, n_least: int, n_most: int) -> None:
    x, y = torch.arange(100.0)[:, None, None, None].expand(100, 1, 16, 16), torch.eye(100)
    got, targets = changes.mixed(x, y, chance, torch.Generator().manual_seed(4))
    changed = (got != x).flatten(1).any(1)
    assert n_least <= int(changed.sum()) <= n_most
    assert torch.equal(targets.diagonal() < 1, changed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_of_mixed_images(dtype: torch.dtype) -> None:
    """Targets are parts of classes that sum to one; the same seed has the same batches."""
    x = torch.arange(40)[:, None, None, None].expand(40, 3, 8, 8).to(dtype).contiguous()
    dataset = data.Dataset("test", x, torch.arange(40) % 4, x[:2], torch.arange(2))
    one, two, other, plain = (data.Batches(dataset, batch_size=40, seed=1, cutmix=c) for c in (0.5, 0.5, 0.6, 0.0))
    (images, targets), (again, same) = next(iter(one)), next(iter(two))
    assert torch.equal(images, again)
    assert torch.equal(targets, same)
    assert targets.shape == (40, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    assert one.fingerprint() == two.fingerprint()
    assert len({one.fingerprint(), other.fingerprint(), plain.fingerprint()}) == 3


def test_targets_of_several_labels_are_mixed_too() -> None:
    x, y = torch.rand(40, 3, 8, 8), (torch.rand(40, 5) < 0.3).float()
    dataset = data.Dataset("test", x, y, x[:2], y[:2])
    _, targets = next(iter(data.Batches(dataset, batch_size=40, seed=1, cutmix=1.0)))
    assert targets.shape == (40, 5)
    assert 0 <= float(targets.min()) < float(targets.max()) <= 1
    assert not torch.equal(targets.round(), targets)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_parts_of_classes(label_smoothing: float) -> None:
    """Of whole classes it is that of their numbers, also where a net has more outputs; between them a line."""
    x = torch.rand(6, 3, 8, 8)
    task = Classification(data.Dataset("test", x, torch.arange(6) % 3, x[:2], torch.arange(2)))
    loss, outputs, y = task.loss(label_smoothing), torch.randn(6, 5), torch.arange(6) % 3
    parts = torch.eye(3)[y]
    torch.testing.assert_close(loss(outputs, parts), loss(outputs, y))
    half = (loss(outputs, y) + loss(outputs, y.roll(1))) / 2
    torch.testing.assert_close(loss(outputs, (parts + parts.roll(1, 0)) / 2), half)
