"""Strided 1x1 convolutions: the same numbers, and never in torch's own way on the CPU (common/networks/convolutions.py)."""
import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from common.networks.convolutions import conv2d, safe_convolutions
from common.networks.create import create_cnn
from downstream_coco.detector import Detector
from downstream_imagenet.classifier import Classifier
from pretrain.check import check
from pretrain.spark import build_spark

HEAP_CHECKS = 'libc_malloc_debug.so.0'


class StridedPointwise(TorchFunctionMode):
    """Counts the strided 1x1 convolutions that reach torch. Entered first, it sees what the modes inside it leave."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = {**dict(zip(('input', 'weight', 'bias', 'stride'), args)), **(kwargs or {})}
        if function is torch.conv2d and given['weight'].shape[2:] == (1, 1):
            self.seen += given.get('stride', 1) not in (1, (1, 1))
        return function(*args, **(kwargs or {}))


class Stem(nn.Module):
    """A network of one's own that begins with a strided 1x1 convolution of the image."""

    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 1, stride=2)
        self.branch = nn.Conv2d(8, 8, 1, stride=2, groups=8)
        self.conv = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Conv2d(16, 24, 1, stride=(2, 2), bias=False)

    def forward_intermediates(self, x, intermediates_only=True):
        maps = [self.stem(x)]
        maps.append(self.conv(self.branch(maps[-1])))
        maps.append(self.last(maps[-1]))
        return maps


def outputs_and_gradients(function, *tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


@pytest.mark.parametrize('given', [
    {'stride': 2}, {'stride': (1, 3)}, {'stride': [2, 1]}, {'stride': (4, 2), 'padding': 1}, {'stride': 3, 'padding': (0, 2)},
    {'stride': 2, 'padding': 'valid'}, {'stride': 2, 'dilation': 2}, {'stride': 2, 'groups': 2},
    {'stride': 1, 'padding': 'same'}, {'stride': 1}, {'stride': (2,)}])
@pytest.mark.parametrize('shape', [(3, 4, 9, 12), (4, 8, 7)])
def test_same_numbers(given, shape):
    torch.manual_seed(0)
    x, bias = torch.randn(shape, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    weight = torch.randn(6, 4 // given.get('groups', 1), 1, 1, dtype=torch.float64)
    ours = outputs_and_gradients(lambda *t: conv2d(*t, **given), x, weight, bias)
    theirs = outputs_and_gradients(lambda *t: torch.conv2d(*t, **given), x, weight, bias)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_wider_windows_are_left_alone():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with safe_convolutions(x.device):
        assert torch.equal(nn.functional.conv2d(x, weight, stride=2), torch.conv2d(x, weight, stride=2))
    with pytest.raises(RuntimeError, match='same'):  # torch's own refusal
        conv2d(x, weight[:, :, :1, :1], stride=2, padding='same')


def test_none_reaches_torch_on_the_cpu():
    torch.manual_seed(0)
    images, counter = torch.randn(3, 3, 64, 64), StridedPointwise()
    with counter:
        Stem().forward_intermediates(images)
    assert counter.seen == 3  # it does count
    with (counter := StridedPointwise()):
        spark = build_spark(Stem(), input_size=64, decoder_width=16)  # which probes and proves
        spark(images).backward()
        spark.encoder(images)[0].sum().backward()
        Classifier(create_cnn('repvgg_a0', num_classes=4), 'ce')(images, torch.ones(3, 4)).backward()
        detector = Detector(create_cnn('test_resnet'), 2, masks=False, channels=8, head_channels=8)
        targets = [{'size': (64, 64), 'boxes': torch.tensor([[4.0, 4, 40, 40]]), 'labels': torch.tensor([1])}] * 3
        detector(images, targets).backward()
        assert check(Stem()).ok
    assert counter.seen == 0


TRAINS = """
import sys, torch
from pretrain.spark import build_spark
from tests.common.networks.test_convolutions import Stem
torch.manual_seed(0)
name, precise = sys.argv[1], torch.float64
spark = build_spark(Stem() if name == 'stem' else name, input_size=128, decoder_width=32)
spark.encoder.cnn.to(memory_format=torch.channels_last)
exact = build_spark(Stem() if name == 'stem' else name, input_size=128, decoder_width=32).to(precise)
exact.load_state_dict(spark.state_dict())
spark.eval(), exact.eval()  # BatchNorm over the few values of a small image magnifies rounding a thousandfold and more
errors = []
for batch in (1, 2, 3, 4, 5):
    images = torch.randn(batch, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    visible = spark.draw_visible(batch)
    for model, x in ((spark, images), (exact, images.to(precise))):
        model.zero_grad()
        sum(level.square().mean() for level in model.encode(x, visible)).backward()
    pairs = [(p.grad, q.grad) for p, q in zip(spark.encoder.parameters(), exact.encoder.parameters()) if q.grad is not None]
    total = sum(q.square().sum() for _, q in pairs).sqrt()
    errors.append((sum((p - q).square().sum() for p, q in pairs).sqrt() / total).item())
# A value that rounding takes to the other side of a ReLU's 0 shows in the whole gradient, in one batch or another.
assert max(errors) < 2e-2 and sorted(errors)[2] < 1e-5, errors
spark.train()
for batch in (1, 2, 3, 4, 5):
    spark(torch.randn(batch, 3, 128, 128).contiguous(memory_format=torch.channels_last)).backward()
print('equal')
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', ['stem', 'repvgg_a0', 'mobileone_s0'])
def test_training_with_the_heap_watched(name):
    """A write outside of its memory ends a process under the C library's checks, where these can be loaded."""
    environment = {**os.environ, 'PYTHONPATH': os.getcwd()}
    try:
        ctypes.CDLL(HEAP_CHECKS)
        environment |= {'LD_PRELOAD': HEAP_CHECKS, 'MALLOC_CHECK_': '3'}
    except OSError:
        pass
    done = subprocess.run([sys.executable, '-c', TRAINS, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'equal' in done.stdout
