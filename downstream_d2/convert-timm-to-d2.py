"""A pretrained ResNet with timm's keys -> the file that Detectron2 reads.

    python3 convert-timm-to-d2.py resnet50_1kpretrained.pth d2-style.pkl

Reads encoders and whole runs of SparK pretraining and fine-tuned ResNets, with `weights_only=True`; refuses what is not a
ResNet-50, -101 or -152. Detectron2 reads a foreign network from a pickle, so that is what is written here: trust one only if
you made it. Exits with 1 and one sentence for what does not fit.
"""
import argparse
import os
import pickle
import re
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it finds common

from common.networks.keys import network_with, unwrap
from common.reliability.checkpoint import read_plain

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}  # of Detectron2, with bottlenecks
FIRST = {'layer1.0.conv1.weight'}  # a layer of every ResNet


def read(path):
    """The tensors in a file of weights, without the prefixes of what they were trained in. Raises ValueError."""
    return network_with(unwrap(read_plain(path), path), FIRST, path)


def depth_of(state):
    """50, 101 or 152. Raises ValueError if the weights are not those of a plain ResNet of that depth."""
    blocks = [len({key.split('.')[1] for key in state if key.startswith(f'layer{stage}.')}) for stage in (1, 2, 3, 4)]
    depth = DEPTHS.get(tuple(blocks))
    if depth is None or 'layer1.0.conv3.weight' not in state or 'conv1.weight' not in state:
        found = f'with {blocks} blocks' if any(blocks) else f'but {next(iter(state))} and so on'
        raise ValueError(f'these are not the weights of a ResNet-50, -101 or -152, the ones that Detectron2 knows ({found})')
    expected = set(expected_keys(blocks))
    strange = sorted(key for key in state if key not in expected and not key.startswith('fc.'))
    missing = sorted(key for key in expected - state.keys() if not key.endswith('num_batches_tracked'))
    if strange or missing:
        raise ValueError('these weights are of a variant of ResNet that Detectron2 does not know: '
                         + (f'{strange[0]} is too much' if strange else f'{missing[0]} is missing'))
    if state['conv1.weight'].shape != (64, 3, 7, 7):
        raise ValueError('these weights are not for images of three channels, the ones that Detectron2 reads')
    if state['layer1.0.conv2.weight'].shape != (64, 64, 3, 3):
        raise ValueError('these weights are of a wide or grouped ResNet, which Detectron2 needs other settings for')
    return depth


def expected_keys(blocks):
    """timm's keys of a plain ResNet without its classifier."""
    def norm(name):
        return [f'{name}.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]
    yield from ('conv1.weight', *norm('bn1'))
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at = f'layer{stage}.{block}.'
            for i in (1, 2, 3):
                yield from (f'{at}conv{i}.weight', *norm(f'{at}bn{i}'))
        yield from (f'layer{stage}.0.downsample.0.weight', *norm(f'layer{stage}.0.downsample.1'))


def d2_key(key):
    """timm's name of a tensor -> Detectron2's."""
    key = re.sub(r'^layer(\d)', lambda match: f'res{int(match[1]) + 1}', key)
    key = key if key.startswith('res') else f'stem.{key}'
    key = key.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
    return re.sub(r'\bbn(\d)', r'conv\1.norm', key)


def convert(state):
    """{Detectron2's key: array} of the tensors of a ResNet but for its classifier."""
    return {d2_key(key): (value.float() if value.is_floating_point() else value).detach().numpy()
            for key, value in state.items() if not key.startswith('fc.')}


def write(content, path):
    """Pickle what Detectron2 reads into a file, whole or not at all. Raises OSError."""
    temporary = f'{path}.writing'
    try:
        with open(temporary, 'wb') as file:
            pickle.dump(content, file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('weights', help='a file of weights with timm\'s keys, such as resnet50_1kpretrained.pth')
    parser.add_argument('output', help='the file to write, such as d2-style.pkl')
    args = parser.parse_args(argv)
    try:
        state = read(args.weights)
        depth = depth_of(state)
        converted = {'model': convert(state), '__author__': 'SparK', 'matching_heuristics': True}
        write(converted, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(converted["model"])} entries of a ResNet-{depth} in {args.output}'
          + (f': train with MODEL.RESNETS.DEPTH {depth}' if depth != 50 else ''))


if __name__ == '__main__':
    main()
