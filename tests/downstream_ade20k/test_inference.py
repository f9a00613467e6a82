"""Whole images, windows, scales and mirror images."""
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from downstream_ade20k.inference import Inference, starts, strips
from tests.downstream_ade20k.seeing import Seeing


def picture(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model():
    return Seeing().eval()


@pytest.mark.parametrize('length, window, stride, expected', [
    (683, 512, 341, [0, 171]), (853, 512, 341, [0, 341]), (854, 512, 341, [0, 341, 342]), (512, 512, 341, [0]),
    (100, 512, 341, [0]), (513, 512, 341, [0, 1]), (96, 32, 32, [0, 32, 64])])
def test_the_last_window_ends_at_the_border(length, window, stride, expected):
    assert starts(length, window, stride) == expected


@pytest.mark.parametrize('size, crop, stride', [((50, 75), (32, 32), (21, 21)), ((32, 75), (32, 40), (30, 7)),
                                                ((20, 90), (32, 32), (21, 21)), ((64, 64), (32, 32), (32, 32))])
def test_where_windows_overlap_the_logits_are_averaged(model, size, crop, stride):
    image = picture(*size)
    found = Inference(crop, stride).logits(model, image)
    # the numbers of windows are as MMSegmentation has them
    down, across = (max(size[i] - crop[i] + stride[i] - 1, 0) // stride[i] + 1 for i in (0, 1))
    sums, windows = torch.zeros(5, *size), torch.zeros(size)
    for i in range(down):
        for j in range(across):
            bottom, right = min(i * stride[0] + crop[0], size[0]), min(j * stride[1] + crop[1], size[1])
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            border = (left, size[1] - right, top, size[0] - bottom)
            seen = model.scores(image[:, :, top:bottom, left:right])
            sums += F.pad(seen, border)[0]
            windows += F.pad(torch.ones(seen.shape[2:]), border)
    torch.testing.assert_close(found, sums / windows)
    assert windows.min() == 1 and not torch.allclose(found, model.scores(image)[0], atol=1e-2)


def test_an_image_that_fits_into_the_window_is_one(model):
    Inference((32, 48), (10, 10)).classes(model, picture(32, 20), (40, 30))
    Inference().classes(model, picture(90, 70), (90, 70))
    assert model.shapes == [(1, 3, 32, 20), (1, 3, 90, 70)]


@pytest.mark.parametrize('size', [(37, 53), (20, 30), (11, 30), (120, 7), (1, 1)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_strips_are_the_resized_logits(size, layout, monkeypatch):
    logits = torch.randn(2, 5, 20, 30).contiguous(memory_format=layout)[1]
    expected = F.interpolate(logits[None], size, mode='bilinear')[0]
    monkeypatch.setattr('downstream_ade20k.inference.VALUES', 5 * size[1] * 4)
    found = list(strips(logits, size))
    assert len(found) == -(-size[0] // 4)
    for rows, strip in found:
        torch.testing.assert_close(strip, expected[:, rows])
    torch.testing.assert_close(torch.cat([strip for _, strip in found], 1), expected)


def test_the_class_is_the_most_probable_one(model):
    for inference in (Inference(), Inference((32, 32), (20, 20)), Inference(scales=(0.5,))):
        probabilities = inference.probabilities(model, picture(50, 75), (80, 120))
        torch.testing.assert_close(probabilities.sum(0), torch.ones(80, 120))
        found = inference.classes(model, picture(50, 75), (80, 120))
        assert torch.equal(found, probabilities.argmax(0)) and len(found.unique()) > 2


def test_the_probabilities_of_scales_and_mirror_images_are_averaged(model):
    image, size, seen = picture(40, 60), (55, 80), []
    for height, width in ((20, 30), (40, 60), (60, 90)):
        scaled = F.interpolate(image, (height, width), mode='bilinear', antialias=True)
        seen.append(F.interpolate(model.scores(scaled), size, mode='bilinear')[0].softmax(0))
        seen.append(F.interpolate(model.scores(scaled.flip(3)).flip(3), size, mode='bilinear')[0].softmax(0))
    assert not torch.allclose(seen[2], seen[3], atol=0.1)
    model.shapes.clear()
    scales = (0.5, 1.0, 1.5)
    found = Inference(scales=scales, flip=True).probabilities(model, image, size)
    torch.testing.assert_close(found, torch.stack(seen).mean(0))
    assert len(model.shapes) == 6
    found = Inference(scales=scales).probabilities(model, image, size)
    torch.testing.assert_close(found, torch.stack(seen[::2]).mean(0))
    found = Inference(flip=True).probabilities(model, image, size)
    torch.testing.assert_close(found, torch.stack(seen[2:4]).mean(0))
    assert torch.equal(Inference(flip=True).classes(model, image, size), found.argmax(0))


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that an operation returns."""
    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if torch.is_tensor(found):
            self.most = max(self.most, found.numel())
        return found


def test_the_scores_of_a_large_file_are_never_there_at_once(model, monkeypatch):
    monkeypatch.setattr('downstream_ade20k.inference.VALUES', 10_000)
    with Largest() as largest:
        found = Inference().classes(model, picture(20, 30), (200, 300))
    assert found.shape == (200, 300) and largest.most == 200 * 300  # not 5 times that
