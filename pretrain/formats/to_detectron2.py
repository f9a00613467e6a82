"""--to=detectron2: a file for Detectron2's ResNets, converted by downstream_d2."""
import importlib.util
import pickle
import re
import tempfile
from pathlib import Path

import torch
from torch import nn

from common.networks.guess import guess_model
from common.reliability.checkpoint import save
from pretrain.formats import contents, verify

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of each stage, by the network's depth
WIDTHS = (64, 128, 256, 512)  # channels inside the blocks of each stage; their outputs have four times more


@torch.no_grad()
def write(saved, stem, suffix, licence):
    """Write the backbone of a ResNet as a pickle. See WRITERS in pretrain/export.py."""
    path = stem.with_suffix('.pkl')
    state = contents.entries_of(saved, classifier=False)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, 'weights.pth'), state)
        verify.run_reader('downstream_d2/convert-timm-to-d2.py', Path(folder, 'weights.pth'), path)
    with open(path, 'rb') as file:
        entries = ArraysAlone(file).load()['model']
    read = {timm_key(key): torch.from_numpy(value) for key, value in entries.items()}
    verify.require_given(saved, read, 'Detectron2', classifier=False)
    depth = int(guess_model(state).removeprefix('resnet'))
    if {key: value.shape for key, value in entries.items()} != backbone_shapes(depth):
        raise ValueError(f'the file has not the names and shapes of a ResNet-{depth} of Detectron2')
    if importlib.util.find_spec('detectron2'):
        images = verify.sample_images(saved)
        theirs = detectron2_features(path, depth, images)
        verify.require_same(saved.network.encoder.pyramid(images), theirs, 'Detectron2')
        checked = 'read by Detectron2: the same features'
    else:
        checked = (f'names and shapes are those of its ResNet-{depth}; Detectron2 is not installed here and '
                   'did not read it')
    return [f'{path}: {checked}. It is a pickle, which Detectron2 asks for']


class ArraysAlone(pickle.Unpickler):
    """Reads a pickle of plain data and NumPy's arrays, and refuses any other class, which could run code."""

    def find_class(self, module, name):
        is_numpy = re.fullmatch(r'numpy(\._?core\.(multiarray|numeric))?', module)
        if not is_numpy or name not in ('ndarray', 'dtype', '_reconstruct', '_frombuffer'):
            raise ValueError(f'the file holds {module}.{name} besides arrays')
        return super().find_class(module, name)


def timm_key(key):
    """Rename an entry of a ResNet from Detectron2's convention to timm's."""
    key = key.removeprefix('stem.')
    key = re.sub(r'^res(\d)', lambda match: f'layer{int(match[1]) - 1}', key)
    key = re.sub(r'\bconv(\d)\.norm', r'bn\1', key)
    return key.replace('shortcut.norm', 'downsample.1').replace('shortcut', 'downsample.0')


def backbone_shapes(depth):
    """Return {name: shape} of the backbone of one of Detectron2's ResNets."""
    shapes = conv_and_norm('stem.conv1', (64, 3, 7, 7))
    in_channels = 64
    for stage, (num_blocks, width) in enumerate(zip(BLOCKS[depth], WIDTHS), start=2):
        for block in range(num_blocks):
            name = f'res{stage}.{block}'
            shapes |= conv_and_norm(f'{name}.conv1', (width, in_channels, 1, 1))
            shapes |= conv_and_norm(f'{name}.conv2', (width, width, 3, 3))
            shapes |= conv_and_norm(f'{name}.conv3', (4 * width, width, 1, 1))
            if block == 0:
                shapes |= conv_and_norm(f'{name}.shortcut', (4 * width, in_channels, 1, 1))
            in_channels = 4 * width
    return shapes


def conv_and_norm(name, shape):
    """Return {name: shape} of a convolution with a weight of this shape, and of its norm."""
    parameters = ('weight', 'bias', 'running_mean', 'running_var')
    norm = {f'{name}.norm.{parameter}': (shape[0],) for parameter in parameters}
    return {f'{name}.weight': shape, **norm, f'{name}.norm.num_batches_tracked': ()}


def detectron2_features(path, depth, images):
    """Return the feature maps of Detectron2's own ResNet with a converted file."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone
    cfg = get_cfg()
    cfg.merge_from_list(['MODEL.RESNETS.DEPTH', depth,
                         'MODEL.RESNETS.STRIDE_IN_1X1', False,
                         'MODEL.RESNETS.NORM', 'BN',
                         'MODEL.RESNETS.OUT_FEATURES', ['res2', 'res3', 'res4', 'res5'],
                         'MODEL.BACKBONE.FREEZE_AT', 0])
    holder = nn.Module()
    holder.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(holder).load(str(path))
    return list(holder.eval().backbone(images).values())
