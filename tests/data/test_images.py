"""Image draws: fixed, disjoint, decoded once and only when asked for; what is corrupt is skipped and said."""

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data import image_decoding
from sqbench.data.base import Batches
from sqbench.data.image_decoding import Decoder, decode
from sqbench.data.image_splits import Split, carve, draw, in_memory, sealed
from sqbench.data.images import SOURCES, ImageCorpus, ImageExamples, LabelledImages
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError

SIDE = 4
GRAY = Preprocessing((1, SIDE, SIDE), (0.5,), (0.25,), interpolation="bilinear")
COLOUR = Preprocessing((3, SIDE, SIDE), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), interpolation="bilinear")


def numbered(count: int, title: str = "numbers") -> Split:
    """Image i is all i, its label i % 3."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None].repeat(SIDE, 1).repeat(SIDE, 2)
    return in_memory(pixels, np.arange(count) % 3, title)


class Counted:
    """A split that counts what it decodes, and whose corrupt positions do not decode."""

    def __init__(self, count: int, corrupt: dict[int, Exception] | None = None) -> None:
        self.loads: list[int] = []
        self.inner, self.corrupt = numbered(count), corrupt or {}
        labels = self.inner.labels
        self.split = Split(labels, self.load, lambda i: f"image-{i}", sealed(labels, lambda i: f"content {i}"), "counted")

    def load(self, index: int) -> Image.Image:
        self.loads.append(index)
        if index in self.corrupt:
            raise self.corrupt[index]
        return self.inner.load(index)


def whole(split: Split, preprocessing: Preprocessing = GRAY, **options: Any) -> LabelledImages:
    return LabelledImages(split, range(len(split)), preprocessing, **options)


def values(images: torch.Tensor) -> list[int]:
    """The numbers that GRAY images of `numbered` are of."""
    return ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist()


def corpus(train: Split, test: Split) -> ImageCorpus:
    return ImageCorpus("numbers", ("a", "b", "c"), train, test)


def examples(found: ImageCorpus, images: int | None = 4, preprocessing: Preprocessing = GRAY, **calibration: Any) -> ImageExamples:
    model = SimpleNamespace(preprocessing=preprocessing)
    return found.examples(model, DataConfig(images=images), CalibrationConfig(**{"images": 4, **calibration}))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("sqbench"), "propagate", True)  # a run in this process may have turned it off
    caplog.set_level(logging.INFO, logger="sqbench")
    return caplog


# ---------------------------------------------------------------- draws


@settings(deadline=None)
@given(total=st.integers(1, 40), smaller=st.integers(1, 45), more=st.integers(0, 9), seed=st.integers(-(2**31), 2**63 - 1))
def test_what_a_smaller_count_takes_is_part_of_what_a_larger_one_takes(total: int, smaller: int, more: int, seed: int) -> None:
    split = whole(numbered(total))
    few, many = split.take(smaller, seed).indices.tolist(), split.take(smaller + more, seed).indices.tolist()
    assert len(few) == min(smaller, total)
    assert set(few) <= set(many)
    assert few == sorted(set(few))
    assert split.take(smaller, seed).fingerprint == LabelledImages(split.split, few, GRAY).fingerprint


@settings(deadline=None)
@given(total=st.integers(1, 40), images=st.integers(1, 40) | st.none())
def test_a_carved_split_shares_nothing_and_loses_nothing(total: int, images: int | None) -> None:
    base = numbered(total)
    if images is not None and images > total:
        with pytest.raises(
            UserError,
            match=rf"data\.images={images}: numbers has {total} images for evaluation and calibration; use fewer than {total}",
        ):
            carve(base, images)
        return
    test, train = carve(base, images)
    seen = [int(np.asarray(split.load(i))[0, 0]) for split in (test, train) for i in range(len(split))]
    assert len(test) == (total if images is None else images)
    assert sorted(seen) == list(range(total))
    assert [*test.labels, *train.labels] == [number % 3 for number in seen]
    assert [split.name(i) for split in (test, train) for i in range(len(split))] == [base.name(number) for number in seen]
    assert test.digest(range(len(test))) == base.digest(seen[: len(test)])


def test_the_draws_are_those_of_earlier_versions() -> None:
    drawn = draw(50, 6, 0).tolist()
    assert drawn == DRAWN_AT_SEED_0, "another draw is another result: raise REVISION in sqbench/running/identity.py"
    found = examples(corpus(numbered(50), numbered(50)), 6)
    assert found.evaluation.indices.tolist() == sorted(DRAWN_AT_SEED_0)
    assert list(found.calibration_images) == DRAWN_AT_SEED_0[:4]


DRAWN_AT_SEED_0 = [44, 39, 7, 6, 17, 29]


def test_evaluation_is_the_same_for_every_seed_and_calibration_another() -> None:
    found = corpus(numbered(60), numbered(60))
    torch.manual_seed(5)  # the global generator has no say
    draws = [examples(found, seed=seed) for seed in range(8)]
    assert len({tuple(one.evaluation.indices.tolist()) for one in draws}) == 1
    assert len({one.calibration_images for one in draws}) == 8
    assert len({one.calibration.fingerprint for one in draws}) == 8
    assert len({one.fingerprint() for one in draws}) == 1


@pytest.mark.parametrize("images", [None, 10])
def test_all_of_the_test_split_is_in_order(images: int | None) -> None:
    assert examples(corpus(numbered(9), numbered(10)), images).evaluation.indices.tolist() == list(range(10))


def test_more_than_there_are_is_refused_by_key_and_number() -> None:
    found = corpus(numbered(20), numbered(10))
    with pytest.raises(UserError, match=r"data\.images=11: the test split of numbers has 10 images; use at most 10"):
        examples(found, 11)
    with pytest.raises(UserError, match=r"calibration\.images=21: the training split of numbers has 20 images; use at most 20"):
        found.identity(DataConfig(images=4), CalibrationConfig(images=21))
    test, train = carve(numbered(20), 17)
    carved = ImageCorpus("numbers", (), train, test, carved=True)
    with pytest.raises(
        UserError, match=r"calibration\.images=4: 17 of 20 images evaluate, 3 are left; use fewer .*data\.train_path"
    ):
        examples(carved, 17)


def test_a_training_split_of_nothing_is_an_error_only_for_those_who_read_it() -> None:
    test, train = carve(numbered(12), None)
    found = examples(ImageCorpus("numbers", (), train, test, carved=True), None)
    assert sum(len(batch.labels) for batch in found.evaluation.batches(5)) == 12
    assert len(found.training) == 0
    for read in (lambda: list(found.calibration), lambda: found.training.take(1), lambda: list(found.training.batches(2))):
        with pytest.raises(UserError, match=r"data\.images: all images of numbers evaluate, none is left to calibrate or train on"):
            read()


# ---------------------------------------------------------------- batches


def test_batches_hold_normalised_images_their_labels_and_positions() -> None:
    draw = LabelledImages(numbered(20), [3, 5, 8, 13, 19], GRAY)
    batches = list(draw.batches(2))
    assert [values(batch.images) for batch in batches] == [[3, 5], [8, 13], [19]]
    assert [batch.index.tolist() for batch in batches] == [[3, 5], [8, 13], [19]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 2], [2, 1], [1]]
    assert draw.labels.tolist() == [0, 2, 2, 1, 1]
    first = batches[0]
    assert (first.images.dtype, first.labels.dtype, first.index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert first.images.shape == (2, 1, SIDE, SIDE)


@settings(deadline=None)
@given(order=st.lists(st.integers(0, 8), max_size=20), size=st.integers(1, 7), budget=st.sampled_from([0, 3 * SIDE * SIDE, 10**6]))
def test_an_order_of_ones_own_is_kept_whatever_is_in_memory(order: list[int], size: int, budget: int) -> None:
    indices, split = [1, 2, 4, 7, 11, 12, 14, 15, 16], numbered(20)
    draw = LabelledImages(split, indices, GRAY, Decoder(split, GRAY, budget))
    for _ in range(2):
        batches = list(draw.batches(size, order))
        assert [value for batch in batches for value in values(batch.images)] == [indices[at] for at in order]
        assert [len(batch.labels) for batch in batches][:-1] == [size] * (len(batches) - 1)


def test_calibration_is_batches_of_eight_in_the_order_drawn() -> None:
    found = examples(corpus(numbered(100), numbered(10)), images=4, preprocessing=GRAY)
    many = corpus(numbered(100), numbered(10)).examples(
        SimpleNamespace(preprocessing=GRAY), DataConfig(images=4), CalibrationConfig(images=20)
    )
    assert isinstance(many.calibration, Batches)
    assert [values(batch) for batch in many.calibration] == [list(many.calibration_images[at : at + 8]) for at in (0, 8, 16)]
    assert many.calibration_images[:4] == found.calibration_images
    assert list(many.calibration_images) != sorted(many.calibration_images)  # classes stored one after another must mix


# ---------------------------------------------------------------- what is decoded when


def test_nothing_is_decoded_before_a_batch_is_asked_for() -> None:
    train, test = Counted(30), Counted(30)
    found = corpus(train.split, test.split)
    found.identity(DataConfig(images=10), CalibrationConfig(images=9))
    found.fingerprints()
    made = examples(found, 10)
    assert made.fingerprint()
    told = {"images": 10, "preprocessing": asdict(GRAY), "skipped": {}, "calibration_images": list(made.calibration_images)}
    assert made.about() == told
    assert not train.loads
    assert not test.loads
    next(made.evaluation.batches(3))
    assert len(test.loads) == 3


def test_draws_of_a_split_share_what_is_decoded() -> None:
    counted = Counted(30)
    made = examples(corpus(counted.split, numbered(10)))
    for _ in range(3):
        list(made.calibration)
        list(made.training.batches(7))
        list(made.training.take(12, seed=3).batches(5))
    assert sorted(counted.loads) == list(range(30))
    again = examples(corpus(counted.split, numbered(10)), seed=1)
    list(again.training.batches(7))
    assert len(counted.loads) == 30
    other = examples(corpus(counted.split, numbered(10)), preprocessing=COLOUR)
    list(other.training.batches(7))
    assert len(counted.loads) == 60  # other pixels


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (SIDE * SIDE * 5 + 1, 5), (10**6, 12)])
def test_memory_stays_within_the_budget(budget: int, kept: int) -> None:
    counted = Counted(12)
    draw = whole(counted.split, decoder=Decoder(counted.split, GRAY, budget))
    for _ in range(2):
        assert [value for batch in draw.batches(4) for value in values(batch.images)] == list(range(12))
    assert len(counted.loads) == 12 + (12 - kept)
    assert draw.decoder._kept.nbytes <= budget


def test_images_are_read_in_the_order_they_are_stored_in() -> None:
    counted = Counted(20)
    list(whole(counted.split).batches(6, order=[9, 3, 17, 0, 12, 5]))
    assert counted.loads == [0, 3, 5, 9, 12, 17]


# ---------------------------------------------------------------- corrupt images


def test_corrupt_images_are_skipped_remembered_and_said_once(said: pytest.LogCaptureFixture) -> None:
    corrupt: dict[int, Exception] = {1: OSError("truncated"), 4: ValueError("odd"), 5: SyntaxError("broken"), 7: EOFError()}
    counted = Counted(10, corrupt)
    draw = whole(counted.split)
    for _ in range(2):
        assert [batch.index.tolist() for batch in draw.batches(2)] == [[0], [2, 3], [6], [8, 9]]  # 4 and 5 are one batch
    assert draw.skipped == {"image-1": "truncated", "image-4": "odd", "image-5": "broken", "image-7": "EOFError"}
    assert [record.levelname for record in said.records] == ["WARNING"]
    message = said.records[0].getMessage()
    assert message == (
        "counted: skipped 4 images that cannot be decoded: image-1 (truncated); image-4 (odd); image-5 (broken); and 1 more"
    )
    assert len(counted.loads) == 10  # the corrupt ones are not tried again
    assert LabelledImages(counted.split, [0, 4], GRAY, draw.decoder).skipped == {"image-4": "odd"}


def test_a_pass_that_is_left_early_says_what_it_skipped(said: pytest.LogCaptureFixture) -> None:
    batches = whole(Counted(10, {0: OSError("gone")}).split).batches(2)
    next(batches)
    batches.close()
    assert "image-0 (gone)" in said.text


def test_only_corrupt_images_are_an_error() -> None:
    draw = whole(Counted(3, {i: OSError("gone") for i in range(3)}).split)
    with pytest.raises(UserError, match=r"counted: none of 3 images can be decoded, for example image-0 \(gone\)"):
        list(draw.batches(2))


def test_a_calibration_batch_of_corrupt_images_is_none(said: pytest.LogCaptureFixture) -> None:
    first = draw(40, 8, 0).tolist()
    counted = Counted(40, {i: OSError("gone") for i in first})
    found = corpus(counted.split, numbered(10))
    made = found.examples(SimpleNamespace(preprocessing=GRAY), DataConfig(images=4), CalibrationConfig(images=18))
    assert made.calibration.make(0) is None
    assert [len(batch) for batch in made.calibration] == [8, 2]
    assert len(made.about()["skipped"]) == 8
    assert said.text.count("skipped 8 images") == 1


def test_a_programmers_error_is_not_called_corrupt() -> None:
    with pytest.raises(AttributeError):
        list(whole(Counted(3, {1: AttributeError("typo")}).split).batches(2))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no image", lambda b: b[:7]])
def test_damaged_bytes_are_corrupt(kind: str, damage: Any) -> None:
    content = encoded(noise(), kind)
    assert decode(io.BytesIO(content)).size == (64, 64)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(io.BytesIO(damage(content)))


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 400), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF"]))
def test_one_wrong_byte_is_an_image_or_corrupt_and_never_a_crash(at: int, value: int, kind: str) -> None:
    content = bytearray(encoded(noise(8), kind))
    content[at % len(content)] = value
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        decode(io.BytesIO(content))


def test_a_decompression_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(noise(), "PNG")
    for limit in (64 * 64 - 1, 64 * 64 // 3):  # PIL warns at the first and raises at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="decompression bomb"):
            decode(io.BytesIO(content))


def test_an_image_that_resizing_would_blow_up_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    split = in_memory(np.zeros((1, 1, 5000), np.uint8), np.zeros(1, np.int64), "narrow")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    draw = whole(split)
    with pytest.raises(UserError, match="5000 x 1 pixels are too narrow to resize"):
        list(draw.batches(1))


# ---------------------------------------------------------------- colours


def stored(*images: Image.Image) -> Split:
    """A split of images encoded as PNG."""
    image_decoding._say_once.cache_clear()  # what another test has seen said
    contents = [encoded(image, "PNG", **({"transparency": image.info["transparency"]} if image.info else {})) for image in images]
    labels = np.zeros(len(images), np.int64)
    return Split(labels, lambda i: decode(io.BytesIO(contents[i])), str, sealed(labels, str), "stored")


RED = Image.new("RGB", (SIDE, SIDE), (200, 10, 10))


def palette(**info: Any) -> Image.Image:
    image = RED.quantize(4)
    image.info.update(info)
    return image


@pytest.mark.parametrize(
    ("image", "expected", "kind"),
    [
        (Image.new("L", (SIDE, SIDE), 90), (90, 90, 90), "grayscale"),
        (Image.new("1", (SIDE, SIDE), 1), (255, 255, 255), "1"),
        (palette(), (200, 10, 10), "palette images"),
        (palette(transparency=b"\x80\x00"), (200, 10, 10), "RGBA"),
        (Image.new("RGBA", (SIDE, SIDE), (200, 10, 10, 128)), (200, 10, 10), "RGBA"),
        (Image.fromarray(np.full((SIDE, SIDE), 90 * 256 + 7, np.uint16)), (90, 90, 90), "grayscale"),
    ],
)
def test_other_colours_become_rgb_and_that_is_said_once(
    said: pytest.LogCaptureFixture, image: Image.Image, expected: tuple[int, ...], kind: str
) -> None:
    (batch,) = whole(stored(RED, image, image), COLOUR).batches(3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (COLOUR.mean, COLOUR.std))
    pixels = ((batch.images * std + mean) * 255).round()
    assert pixels[1, :, 0, 0].tolist() == list(expected)
    assert pixels[0, :, 0, 0].tolist() == [200, 10, 10]
    assert [record.getMessage() for record in said.records] == [f"stored: some images are {kind}: converted to RGB"]


def test_colour_becomes_gray_for_a_gray_model(said: pytest.LogCaptureFixture) -> None:
    (batch,) = whole(stored(RED), GRAY).batches(3)
    assert values(batch.images) == [round(0.299 * 200 + 0.587 * 10 + 0.114 * 10)]
    assert "some images are in colour: converted to L" in said.text


def test_cmyk_is_read_and_floats_are_refused() -> None:
    cmyk = decode(io.BytesIO(encoded(RED.convert("CMYK"), "JPEG", quality=95)))
    assert COLOUR.pixels(cmyk).shape == (3, SIDE, SIDE)
    floats = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"32 bits a channel \(mode F\); use 8 or 16"):
        decode(io.BytesIO(floats))


# ---------------------------------------------------------------- identity


def identity(found: ImageCorpus, images: int | None = 6, **calibration: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return found.identity(DataConfig(name="x", path="/anywhere", images=images), CalibrationConfig(**{"images": 5, **calibration}))


def changed(split: Split, index: int, pixel: int | None = None, label: int | None = None) -> Split:
    pixels = np.stack([np.asarray(split.load(i)) for i in range(len(split))])
    labels = split.labels.copy()
    pixels[index, 1, 2] = pixels[index, 1, 2] if pixel is None else pixel
    labels[index] = labels[index] if label is None else label
    return in_memory(pixels, labels, "changed")


@pytest.mark.parametrize("change", [{"pixel": 255}, {"label": 7}])
def test_identity_is_the_content_and_labels_of_what_is_drawn(change: dict[str, int]) -> None:
    train, test = numbered(40), numbered(40)
    evaluated, calibrated = identity(corpus(train, test))
    used, unused = draw(40, 6, 0).tolist(), draw(40, 40, 0).tolist()[6:]
    assert identity(corpus(changed(train, unused[0], **change), changed(test, unused[1], **change))) == (evaluated, calibrated)
    other = identity(corpus(train, changed(test, used[0], **change)))
    assert other[0]["test"] != evaluated["test"]
    assert other[1] == calibrated
    other = identity(corpus(changed(train, used[0], **change), test))
    assert other[0] == evaluated
    assert other[1]["train"] != calibrated["train"]
    assert corpus(changed(train, unused[0], **change), test).trained_on(6) == corpus(train, test).trained_on(6)
    assert corpus(changed(train, used[0], **change), test).trained_on(6) != corpus(train, test).trained_on(6)
    assert corpus(changed(train, unused[0], **change), test).trained_on() != corpus(train, test).trained_on()
    assert corpus(changed(train, unused[0], **change), test).fingerprints() != corpus(train, test).fingerprints()


def test_identity_says_how_many_were_used_and_nothing_of_paths() -> None:
    found = corpus(numbered(40), numbered(12))
    assert identity(found, None) == identity(found, 12)
    evaluated, calibrated = identity(found, None, seed=3, search_images=2)
    assert evaluated["images"] == 12
    assert {key: calibrated[key] for key in ("images", "seed", "search_images")} == {"images": 5, "seed": 3, "search_images": 2}
    assert "anywhere" not in repr((evaluated, calibrated))


def test_a_fingerprint_is_of_content_order_and_preprocessing() -> None:
    split = numbered(10)
    prints: Sequence[str] = [
        LabelledImages(split, [1, 2], GRAY).fingerprint,
        LabelledImages(split, [2, 1], GRAY).fingerprint,
        LabelledImages(split, [1, 3], GRAY).fingerprint,
        LabelledImages(split, [1, 2], COLOUR).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert LabelledImages(numbered(20), [1, 2], GRAY).fingerprint == prints[0]


def test_every_source_is_of_images() -> None:
    assert {source.kind for source in SOURCES.values()} == {"images"}
