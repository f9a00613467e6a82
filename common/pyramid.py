"""The levels of a network's feature pyramid, measured rather than declared: for detection and segmentation.

A level is the last feature map of a stride. The levels go from stride 4 on, each of twice the stride before.
Networks that end in a transformer often have no map of stride 32. The programs add one.
"""
from dataclasses import dataclass

import torch
from timm.layers import freeze_batch_norm_2d

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions

SIDE = 256  # pixels of the image that a network is measured with
FINEST = 4  # the stride of the first level, as in the FPN paper; less only where a network has no such map
ENDS_EARLY = 16  # the last stride of networks to whose levels one more is added, such as ConvMAE's and ViTs


@dataclass(frozen=True)
class Levels:
    """The levels of a network's pyramid, from large to small.

    indices: of the network's feature maps. strides: pixels of the image a position. widths: channels.
    """
    indices: tuple
    strides: tuple
    widths: tuple

    @property
    def ends_early(self):
        """Whether one more level, of stride 32, is to be added."""
        return self.strides[-1] == ENDS_EARLY

    def maps(self, cnn, images):
        """The maps of images (B, C, H, W), [(B, width, H / stride, W / stride)]."""
        with safe_convolutions(images.device):
            found = feature_maps(cnn, images)
        return [found[index] for index in self.indices]


def levels_of(cnn, in_chans=3):
    """The Levels of a network. Raises ValueError for a network whose maps do not halve."""
    found = measure(cnn, in_chans)
    wanted = {stride: one for stride, one in sorted(found.items()) if stride >= min(FINEST, max(found))}
    if any(2 * one not in wanted for one in list(wanted)[:-1]):
        raise ValueError(f'{type(cnn).__name__} has maps of strides {", ".join(map(str, wanted))}: a '
                         'pyramid needs each stride to be twice the one before')
    indices, widths = zip(*wanted.values())
    return Levels(indices, tuple(wanted), widths)


@torch.no_grad()
def measure(cnn, in_chans=3):
    """{stride: (index, channels)} of the last map of each stride of a network, from large to small. Raises ValueError."""
    if not hasattr(cnn, 'forward_intermediates'):
        raise ValueError(f'{type(cnn).__name__} has no forward_intermediates, by which feature maps are had: '
                         'see pretrain/models/custom.py for a network of your own, or update timm')
    mode, found = cnn.training, {}
    try:
        maps = feature_maps(cnn.eval(), torch.zeros(1, in_chans, SIDE, SIDE))
    except Exception as error:  # whatever a network can raise
        raise one_size_only(cnn, f'{SIDE}', error) from error
    for index, one in enumerate(maps):
        stride = round(SIDE / one.shape[2])
        if stride & (stride - 1) or one.shape[2] != SIDE // stride:
            raise ValueError(f'{type(cnn).__name__} makes a map of {one.shape[2]} px of an image of {SIDE}: '
                             'a pyramid needs strides that are powers of two')
        found[stride] = index, one.shape[1]
    cnn.train(mode)
    return found


def unused_parameters(module, outputs, in_chans=3):
    """Names of the parameters of a module that its outputs do not depend on: the classifier, a last norm.

    outputs: called with an image (1, C, H, W); returns tensors.
    """
    mode, buffers = module.training, {name: one.clone() for name, one in module.named_buffers()}
    module.eval()
    with torch.enable_grad():
        sum(one.sum() for one in outputs(torch.zeros(1, in_chans, SIDE, SIDE))).backward()
    unused = [name for name, one in module.named_parameters() if one.grad is None]
    module.zero_grad(set_to_none=True)
    for name, one in module.named_buffers():
        one.copy_(buffers[name])
    module.train(mode)
    return unused


def leave_untrained(backbone, outputs, in_chans=3, frozen=False, frozen_bn=False):
    """Have a backbone train only what its outputs depend on, and nothing of its CNN if that is frozen.

    backbone: with the network as `cnn`. outputs, in_chans: as of `unused_parameters`. frozen: the CNN is not trained
    at all. frozen_bn: its BatchNorms become fixed ones, with the statistics and weights that they have.

    Returns the names of the parameters that the outputs do not depend on.
    """
    unused = unused_parameters(backbone, outputs, in_chans)
    for name in unused:
        backbone.get_parameter(name).requires_grad_(False)
    if frozen:
        backbone.cnn.requires_grad_(False)
    elif frozen_bn:
        backbone.cnn = freeze_batch_norm_2d(backbone.cnn)
    return unused


@torch.no_grad()
def step_of_sizes(cnn, stride, in_chans=3):
    """The number of which the sides of an image must be multiples: 1, a stride, or more where there are windows.

    stride: the largest one of the network. It is found by trying, up to SIDE. Raises ValueError for a network that takes
    images of SIDE alone.
    """
    mode, step = cnn.training, 1
    cnn.eval()
    while True:
        height, width = (SIDE - 3, SIDE + 5) if step == 1 else (SIDE, SIDE + step)
        try:
            feature_maps(cnn, torch.zeros(1, in_chans, height, width))
            break
        except Exception as error:  # whatever a network can raise
            if step >= SIDE:
                raise one_size_only(cnn, f'{SIDE} x {2 * SIDE}', error) from error
            step = stride if step == 1 else 2 * step
    cnn.train(mode)
    return step


def one_size_only(cnn, size, error):
    """A ValueError for a network that has failed on an image of a size, a text."""
    return ValueError(f'{type(cnn).__name__} cannot take an image of {size} px and give its maps, by which networks are '
                      f'measured here ({error}). A network that takes images of one size only, as most ViTs and Swins do, '
                      'cannot be used: take a CNN, a hybrid that takes any size, or a ConvViT')
