"""Views of images and masks: sizes, crops, padding, batches."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import functional as F

from common.images.augmented import Steps, seeded
from common.images.loading import loader
from downstream_ade20k.classes import IGNORE
from downstream_ade20k.views import (
    Segmented,
    TrainingView,
    View,
    WholeView,
    collate,
    collate_whole,
    padded,
    resized,
    share_of_one,
)

PLAIN = (0.0,) * 3, (1.0,) * 3  # a normalisation that changes nothing
GREY = (0.0,), (1.0,)


class Squares:
    """Images of black and white squares, and masks that say which. Every fifth image cannot be read."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index % 5 == 4:
            raise OSError('it is cut off')
        return squares(40 + 3 * index, 70 - 2 * index, seed=index)


def squares(height, width, seed=0, side=16):
    """(PIL image, mask (h, w) int16): squares, black where the mask is 0 and white where it is 1, by chance."""
    shape = -(-height // side), -(-width // side)
    classes = np.random.default_rng(seed).integers(0, 2, shape)
    mask = np.kron(classes, np.ones((side, side), int))[:height, :width]
    pixels = np.repeat((255 * mask)[..., None], 3, 2).astype(np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(mask.astype(np.int16))


def noise(height, width, channels=3, seed=0):
    """A PIL image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


# -- sizes, boxes, mirrors ------------------------------------------------------------------------------------

def test_sizes():
    assert resized(512, 683, 512, 2048) == (512, 683)
    assert resized(1024, 1366, 512, 2048) == (512, 683)
    assert resized(683, 512, 512, 2048, scale=0.5) == (342, 256)
    assert resized(100, 1000, 512, 2048) == (205, 2048)  # the long side decides
    assert resized(100, 1000, 512, 2048, scale=2.0) == (410, 4096)
    assert resized(1, 4000, 512, 2048, scale=0.5) == (1, 1024)
    assert resized(37, 53, 512, 2048, keep_size=True) == (37, 53)
    assert resized(37, 53, 512, 2048, keep_size=True, scale=2.0) == (74, 106)


@pytest.mark.parametrize('size', [(40, 60), (23, 31), (97, 150)])
@pytest.mark.parametrize('mirrored', [False, True])
def test_a_view_is_the_whole_image_resized_and_cut(size, mirrored):
    image = noise(40, 60)
    box = (3, 5, size[0] // 2, size[1] // 2)
    view = View(size, box, mirrored)
    whole = F.pil_to_tensor(image.resize(size[::-1], Image.Resampling.BILINEAR))
    expected = F.crop(whole, *box)
    if mirrored:
        expected = F.hflip(expected)
    assert (view.image(image).int() - expected.int()).abs().max() <= 1
    assert torch.equal(view.image(F.pil_to_tensor(image)), view.image(image))
    exact = view.image(F.pil_to_tensor(image).float() / 255)
    assert exact.dtype == torch.float32 and (exact * 255 - expected).abs().max() < 1.01  # Pillow rounds twice


def test_a_view_of_several_channels_of_floats_is_antialiased():
    image = torch.rand(5, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = interpolate(image[None], (20, 30), mode='bilinear', antialias=True)[0]
    torch.testing.assert_close(View((20, 30), (0, 0, 20, 30)).image(image), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(View((20, 30), (4, 7, 9, 11)).image(image), expected[:, 4:13, 7:18], rtol=0, atol=1e-4)


def test_a_pixel_of_a_mask_is_the_one_that_its_centre_lies_in():
    row = torch.tensor([[0, 1, 2, 3]], dtype=torch.int16)
    for width, expected in ((2, [1, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (8, [0, 0, 1, 1, 2, 2, 3, 3])):
        assert View((1, width), (0, 0, 1, width)).mask(row).tolist() == [expected]
        assert View((1, width), (0, 0, 1, width), True).mask(row).tolist() == [expected[::-1]]
        assert View((1, width), (0, 1, 1, 1)).mask(row).tolist() == [expected[1:2]]
    mask = torch.arange(37 * 53, dtype=torch.int16).view(37, 53)
    expected = interpolate(mask[None, None].float(), (29, 71), mode='nearest-exact')[0, 0]
    assert torch.equal(View((29, 71), (0, 0, 29, 71)).mask(mask).float(), expected)


@pytest.mark.parametrize('seed', range(8))
def test_image_and_mask_are_seen_alike(seed):
    image, mask = squares(90, 130, seed)
    view = TrainingView((64, 64), 80, 320, distort=False)
    with seeded(seed):
        seen, seen_mask = view(image, mask, PLAIN)
    is_image = seen_mask != IGNORE
    assert seen.shape == (3, 64, 64) and seen_mask.shape == (64, 64) and seen_mask.dtype == torch.int16
    # The image is blurred, but its pixels are more than half white where the mask is 1. Only at the corners of squares,
    # and where a border halves a pixel, the two may differ; shifted by one pixel, 2 % of them do.
    assert ((seen[0] > 0.5) == (seen_mask == 1))[is_image].float().mean() > 0.995
    assert (seen[:, ~is_image] == 0).all()


def test_half_of_the_views_are_mirrored():
    image, mask = squares(32, 32)
    views = [TrainingView((32, 32), 32, 32, (1, 1), flip=flip, most_of_one=1) for flip in (True, False)]
    with seeded(0):
        mirrored, plain = ([view.draw(mask).mirrored for _ in range(400)] for view in views)
    assert 160 < sum(mirrored) < 240 and not any(plain)
    assert not torch.equal(View((32, 32), (0, 0, 32, 32), True).image(image), F.pil_to_tensor(image))


def test_scales_and_places_of_crops():
    mask = squares(100, 150)[1]
    view = TrainingView((64, 64), 100, 400, most_of_one=1)
    with seeded(0):
        drawn = [view.draw(mask) for _ in range(500)]
        kept = [TrainingView((64, 64), 7, 9, keep_size=True, most_of_one=1).draw(mask) for _ in range(500)]
    for views in (drawn, kept):
        heights = np.array([view.size[0] for view in views])
        assert 50 <= heights.min() < 55 and 195 < heights.max() <= 200 and 118 < heights.mean() < 132
    for one in drawn:
        top, left, height, width = one.box
        assert (height, width) == (min(one.size[0], 64), 64)
        assert 0 <= top <= one.size[0] - height and 0 <= left <= one.size[1] - width
    ends = [one.box[1] == one.size[1] - 64 for one in drawn]
    assert any(ends) and any(one.box[1] == 0 for one in drawn)  # both ends are drawn


# -- crops of several classes ---------------------------------------------------------------------------------

def test_the_share_of_the_most_frequent_class():
    mask = torch.tensor([[0, 0, 0, 7], [IGNORE, IGNORE, IGNORE, IGNORE]], dtype=torch.int16)
    assert share_of_one(mask) == 0.75
    assert share_of_one(mask[:, :3]) == 1 and share_of_one(mask[1:]) == 1
    assert share_of_one(torch.arange(1000, dtype=torch.int16)[None]) == pytest.approx(0.001)


def test_crops_of_nearly_one_class_are_drawn_again():
    mask = torch.zeros(32, 300, dtype=torch.int16)
    mask[:, 150:] = 1  # A crop of 32 columns has a quarter of both in 1 of 17 draws.
    shares = {}
    for most in (0.75, 1.0):
        with seeded(0):
            shares[most] = [share_of_one(view.mask(mask)) for view in
                            (TrainingView((32, 32), 32, 300, (1, 1), most).draw(mask) for _ in range(400))]
    assert sum(share <= 0.75 for share in shares[1.0]) < 60
    assert 130 < sum(share <= 0.75 for share in shares[0.75]) < 250  # 1 - (16 / 17) ** 10 = 45 %


@pytest.mark.parametrize('only', [3, IGNORE])
def test_masks_of_one_class_are_cut_all_the_same(only):
    mask = torch.full((80, 80), only, dtype=torch.int16)
    _, seen = TrainingView((32, 32), 80, 80, (1, 1))(noise(80, 80), mask, PLAIN)
    assert (seen == only).all()


# -- colours --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(6))
def test_images_of_8_and_16_bits_become_the_same_view(seed):
    image, mask = noise(60, 80), squares(60, 80)[1]
    of_8_bits = F.pil_to_tensor(image)
    of_16_bits = (of_8_bits.to(torch.int32) * 257).to(torch.uint16)
    seen = []
    for given in (image, of_8_bits, of_8_bits.float() / 255, of_16_bits):
        with seeded(seed):
            seen.append(TrainingView((64, 64), 60, 240)(given, mask, PLAIN))
    for view, view_mask in seen[1:]:
        # Rounding to 8 bits comes before the contrast, and before changes of colour that magnify it in dark pixels.
        assert (view - seen[0][0]).abs().mean() < 0.01 and torch.equal(view_mask, seen[0][1])
    assert torch.equal(seen[0][0], seen[1][0])


def test_colours_are_not_changed_on_demand():
    image, mask = noise(64, 64), torch.zeros(64, 64, dtype=torch.int16)
    views = [TrainingView((64, 64), 64, 64, (1, 1), flip=False, distort=distort) for distort in (True, False)]
    with seeded(3):
        changed = [views[0](image, mask, PLAIN)[0] for _ in range(8)]
        plain = [views[1](image, mask, PLAIN)[0] for _ in range(8)]
    expected = F.pil_to_tensor(image) / 255
    assert all(torch.equal(one, expected) for one in plain)
    assert sum(torch.equal(one, expected) for one in changed) < 4


# -- padding, odd images, whole images ------------------------------------------------------------------------

def test_small_images_are_padded_at_the_right_and_the_bottom():
    image, mask = padded(torch.ones(3, 2, 3), torch.ones(2, 3, dtype=torch.int16), (3, 5))
    assert image[0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5]
    assert mask.tolist() == [[1, 1, 1, IGNORE, IGNORE]] * 2 + [[IGNORE] * 5] and mask.dtype == torch.int16
    white = Image.new('RGB', (20, 10), 'white')
    view = TrainingView((32, 32), 10, 40, (1, 1), distort=False)
    seen, seen_mask = view(white, torch.zeros(10, 20, dtype=torch.int16), ((0.5,) * 3, (0.5,) * 3))
    is_image = torch.zeros(32, 32, dtype=torch.bool)
    is_image[:10, :20] = True
    assert (seen[:, is_image] == 1).all() and (seen[:, ~is_image] == -1).all()  # The padding is black.
    assert (seen_mask[:10, :20] == 0).all() and (seen_mask == IGNORE).sum() == 32 * 32 - 200


@pytest.mark.parametrize(('height', 'width'), [(1, 4000), (4000, 1), (1, 1), (5, 3), (3648, 5472)])
@pytest.mark.parametrize('keep_size', [False, True])
def test_sizes_of_any_kind_are_seen(height, width, keep_size):
    image = Image.new('L', (width, height), 200)
    mask = torch.arange(width).remainder(2).to(torch.int16).expand(height, width)
    view = TrainingView((64, 48), 48, 192, keep_size=keep_size)
    for given in (image, F.pil_to_tensor(image), F.pil_to_tensor(image) / 255):
        for seed in range(3):
            with seeded(seed):
                seen, seen_mask = view(given, mask, GREY)
            assert seen.shape == (1, 64, 48) and seen.isfinite().all() and seen_mask.shape == (64, 48)
            assert (seen_mask != IGNORE).any()
    whole, whole_mask = WholeView(48, 192)(image, mask, GREY)
    assert whole.shape[1:] == resized(height, width, 48, 192) and whole_mask is mask


def test_whole_views():
    image, mask = squares(90, 130)
    seen, seen_mask = WholeView(45, 1000)(image, mask, ((0.5,) * 3, (0.25,) * 3))
    expected = F.pil_to_tensor(image.resize((65, 45), Image.Resampling.BILINEAR)) / 255
    assert torch.allclose(seen * 0.25 + 0.5, expected, atol=1e-6) and seen_mask is mask
    kept, _ = WholeView(45, 1000, keep_size=True)(image, None, PLAIN)
    assert torch.equal(kept, F.pil_to_tensor(image) / 255)


# -- data sets and batches ------------------------------------------------------------------------------------

def test_batches_depend_neither_on_processes_nor_on_where_a_run_begins():
    segmented = Segmented(Squares(), TrainingView((32, 32), 40, 160), PLAIN, seed=3)
    whole = batches(segmented, 0)
    assert len(whole) == 6
    for images, masks, _ in whole:
        assert images.shape == (4, 3, 32, 32) and masks.shape == (4, 32, 32) and masks.dtype == torch.int16
    assert {index for *_, failures in whole for index, _ in failures} == {4, 9}
    for workers, start in ((2, 0), (0, 4)):
        again = batches(segmented, workers, start)
        assert len(again) == 6 - start
        for one, other in zip(whole[start:], again):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]
    assert not torch.equal(segmented[0, 1][0], segmented[1, 1][0])  # Another epoch has other views.
    other = Segmented(Squares(), TrainingView((32, 32), 40, 160), PLAIN, seed=4)
    assert not torch.equal(segmented[0, 1][0], other[0, 1][0])


def batches(segmented, workers, start=0):
    """The training batches of two epochs."""
    steps = Steps(len(segmented), 4, 2, 0, start)
    return list(loader(segmented, steps, workers, torch.device('cpu'), collate))


def test_another_image_stands_in_for_one_that_cannot_be_read():
    image, target, failures = Segmented(Squares(), TrainingView((32, 32), 40, 160), PLAIN)[0, 4]
    assert image.shape == (3, 32, 32) and target['number'] == 5
    assert failures == [(4, 'OSError: it is cut off')]


def test_whole_images_come_one_at_a_time():
    images = Squares()
    segmented = Segmented(images, WholeView(40, 160), PLAIN, stand_ins=False)
    seen, (target,), failures = collate_whole([segmented[0, 2]])
    assert seen.shape == (1, 3, 40, 57) and failures == [] and target['number'] == 2
    assert torch.equal(target['mask'], images[2][1]) and target['mask'].shape == (46, 66)
    seen, targets, failures = collate_whole([segmented[0, 4]])
    assert len(seen) == 0 and targets == [] and failures == [(4, 'OSError: it is cut off')]


def test_batches_leave_out_what_cannot_be_read():
    segmented = Segmented(Squares(), TrainingView((32, 32), 40, 160), PLAIN, stand_ins=False)
    images, masks, failures = collate([segmented[0, index] for index in (3, 4)])
    assert images.shape == (1, 3, 32, 32) and masks.shape == (1, 32, 32) and [index for index, _ in failures] == [4]
    images, masks, failures = collate([segmented[0, 4]])
    assert len(images) == len(masks) == 0 and len(failures) == 1
