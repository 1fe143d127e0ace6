"""The data of tools/accuracy.py's protocols."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from protocols import images, text
from protocols.table import PROTOCOLS

from sqcompile.recipe import RECIPES, Recipe


def some_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def binary(folder, pixels, labels):
    """CIFAR-10's binary version: all records in the first of five training files."""
    (folder / "cifar-10-batches-bin").mkdir()
    records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records.astype(np.uint8).tofile(folder / "cifar-10-batches-bin" / name)


def test_the_binary_version_is_read(tmp_path):
    pixels, labels = some_images(4), np.arange(4)
    binary(tmp_path, pixels, labels)
    found, classes = images.cifar10(tmp_path, "train", 6)
    assert found.shape == (6, 3, 32, 32)
    assert torch.equal(found[:4], torch.from_numpy(pixels))
    assert classes.tolist() == [0, 1, 2, 3, 0, 1]


def test_jpeg_archives_are_read(tmp_path):
    flat = np.full((2, 32, 32, 3), 7, np.uint8)
    flat[1] = 200
    files = []
    for one in flat:
        held = BytesIO()
        Image.fromarray(one).save(held, "jpeg")
        files.append(np.frombuffer(held.getvalue(), np.uint8))
    offsets = np.cumsum([0, *(len(one) for one in files)])
    np.savez(
        tmp_path / "cifar10_test_jpeg.npz",
        data=np.concatenate(files),
        offsets=offsets,
        labels=np.array([3, 4], np.uint8),
    )
    found, labels = images.cifar10(tmp_path, "test", 2)
    assert found[0].unique().tolist() == [7] and found[1].unique().tolist() == [200]
    assert labels.tolist() == [3, 4]


def test_no_images_say_where_to_get_them(tmp_path):
    with pytest.raises(click.UsageError, match="binary version"):
        images.cifar10(tmp_path, "train", 1)


def test_a_batch_that_is_missing_is_named(tmp_path):
    binary(tmp_path, some_images(4), np.arange(4))
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(click.UsageError, match="lacks data_batch_3.bin"):
        images.cifar10(tmp_path, "train", 1)


def test_images_are_normalised_by_channel_after_averaging():
    whole = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    found = images.normalised(whole, 16)
    expected = [(1 - m) / d for m, d in zip(images.MEAN, images.DEVIATION, strict=True)]
    assert found.shape == (1, 3, 16, 16)
    assert found[0, :, 3, 5].tolist() == pytest.approx(expected)


def test_augmentation_moves_and_mirrors_whole_images():
    x = torch.arange(1.0, 65.0).view(1, 1, 8, 8).repeat(64, 1, 1, 1)
    found = images.augmented(x, 2, torch.Generator().manual_seed(0))
    mirrored = 0
    for one in found[:, 0]:
        steps = one[:, 1:] - one[:, :-1]
        inside = (one[:, 1:] > 0) & (one[:, :-1] > 0)
        assert len(steps[inside].unique()) == 1
        mirrored += int(steps[inside][0] < 0)
    assert 16 < mirrored < 48
    assert len({one.sum().item() for one in found}) > 8


def test_splits_share_no_image_and_epochs_their_seed(tmp_path):
    binary(tmp_path, some_images(300), np.arange(300) % 10)
    data = images.cifar10_splits(tmp_path, side=16, train=16, validation=250, batch=8, shift=0)
    train = torch.cat([x for x, _ in data.train(5)]).flatten(1)
    held = torch.cat([x for x, _ in data.validation]).flatten(1)
    plain = torch.cdist(train, held)
    mirrored = torch.cdist(train.view(-1, 3, 16, 16).flip(3).flatten(1), held)
    assert data.steps == 2 and len(train) == 16 and len(held) == 250
    assert plain.min() > 0.1 and mirrored.min() > 0.1
    again = torch.cat([x for x, _ in data.train(5)]).flatten(1)
    other = torch.cat([x for x, _ in data.train(6)]).flatten(1)
    assert torch.equal(train, again) and not torch.equal(train, other)


def test_windows_of_text_predict_the_next_byte(tmp_path):
    whole = bytes(range(256)) * 20
    (tmp_path / text.NAME).write_bytes(whole)
    data = text.windows(tmp_path, context=8, batch=4, steps=3)
    batches = list(data.train(0))
    assert len(batches) == 3
    for x, y in batches:
        assert x.shape == y.shape == (4, 8)
        assert torch.equal((x + 1) % 256, y)
    first, second = data.validation[0][0][0, 0], data.test[0][0][0, 0]
    assert first == whole[len(whole) * 18 // 20] and second == whole[len(whole) * 19 // 20]


def test_digits_are_split_three_ways():
    data = PROTOCOLS["digits"].load(None)
    rows = torch.cat([x for x, _ in data.train(0)])
    assert len(rows) == data.steps * 64 == 896
    assert sum(len(y) for _, y in data.validation) == 180
    assert sum(len(y) for _, y in data.test) == 720


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_network_is_made(name):
    assert sum(p.numel() for p in PROTOCOLS[name].make_model().parameters()) > 5000


FILES = sorted((Path(__file__).resolve().parents[2] / "tools/protocols/recipes").rglob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_recipe_file_has_its_own_name(file):
    recipe = Recipe.load(file)
    assert recipe.name == file.stem
    named = [one for one in RECIPES.values() if replace(recipe, name=one.name) == one]
    assert not named  # else it measures what is measured anyway
