"""Features of images by a pretrained encoder, for whatever comes next: pooled, and the maps of each level.

    python -m pretrain.features output_my_run photos/

writes output_my_run/features/0000_NAME.npz of each image, and pooled.npz of all; --out names another folder.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse

import numpy as np
import torch

from common.cli import errors_in_one_sentence, expanded, folder_for, reader_may_leave
from common.live_line import LiveLine
from common.reliability.checkpoint import write_atomically
from common.words import counted, file_stem
from pretrain.arguments import add_network, network_of


@torch.no_grad()
def features(saved, sources, out, maps=True, say=print):
    """Write the features of images into the folder out.

    pooled.npz holds names (N,) and pooled (N, C) float32, the mean over positions of the last map. With maps,
    NUMBER_NAME.npz of each image holds its pooled (C,) and stride_S (C_S, H/S, W/S) for each level of the
    pyramid. Images are resized and cut to the network's size, and the network sees all of them, without a mask.

    Args:
        saved: the network, of `read_saved`.
        sources: files and folders of images.
        say: function of a text, for what is to be known.

    Returns (names, pooled). Raises ValueError.
    """
    encoder = saved.network.encoder
    out = folder_for(out)
    names = []
    pooled = []
    line = LiveLine(say)
    with line.counting('features') as count:
        for index, name, image in saved.each(sources, line.say, count):
            levels = [level[0] for level in saved.network.pyramid(image)]
            names.append(name)
            pooled.append(levels[-1].mean((1, 2)).numpy())
            if maps:
                arrays = {f'stride_{stride}': level.numpy() for stride, level in zip(encoder.reductions, levels)}
                write_arrays(out / f'{index:04}_{file_stem(name)}.npz', pooled=pooled[-1], **arrays)
    pooled = np.stack(pooled)
    write_arrays(out / 'pooled.npz', names=np.array(names), pooled=pooled)
    strides = ', '.join(map(str, encoder.reductions))
    say(f'{counted(len(names), "image")} in {out}: pooled features of {pooled.shape[1]} numbers'
        + (f', maps of strides {strides}' if maps else ''))
    return names, pooled


def write_arrays(path, **arrays):
    """Write arrays as .npz, whole or not at all."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.features', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add_network(parser)
    parser.add_argument('images', metavar='IMAGES', nargs='+', help='image files, or folders of them')
    parser.add_argument('--out', help='folder for the arrays (default: features, in the folder of the given file)')
    parser.add_argument('--no_maps', action='store_true', help='pooled features only')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        saved = network_of(args)
        features(saved, args.images, args.out or saved.path.parent / 'features', not args.no_maps)


if __name__ == '__main__':
    main()
