"""Reconstruct images with a pretrained network: pictures of each, and one sheet of all.

    python -m pretrain.reconstruct output_my_run cat.jpg photos/           # into output_my_run/reconstructed/
    python -m pretrain.reconstruct res50_withdecoder_1kpretrained_spark_style.pth cat.jpg --mask_ratio=0.75 \\
        --seed=1 --grid --out=pictures
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
from pathlib import Path

import torch

from common.cli import errors_in_one_sentence, expanded, folder_for, reader_may_leave
from common.live_line import LiveLine
from common.pictures import SIDE, as_image, labelled_columns, scaled
from common.words import file_stem, printable
from pretrain.arguments import add_network, network_of
from pretrain.results.pictures import captions, explanation, views, with_grid, write_picture
from pretrain.results.typed_masks import read_mask

MAX_ON_SHEET = 50  # images


def reconstruct(saved, sources, out, seed=0, mask=None, grid=False, say=print):
    """Reconstruct images, and write pictures into the folder out.

    They are NUMBER_NAME_masked.png, _reconstruction.png and _error.png of each image, and contact_sheet.png.

    Args:
        saved: the network, of `read_saved`.
        sources: files and folders of images.
        seed: of the masks that are drawn.
        mask: a text as in typed_masks.py, for all images. None draws one for each.
        grid: whether there are lines between the cells.
        say: function of a text, for what is to be known.

    Returns [(file, loss)]. Raises ValueError.
    """
    saved.require_decoder()
    network = saved.network
    shown = captions(network)
    given = None if mask is None else read_mask(mask, network.encoder.grid)
    loss_name = saved.method.loss_meaning(saved.options.as_dict()).of_cells
    out = folder_for(out)
    losses = []
    rows = []
    texts = []
    line = LiveLine(say)
    with line.counting('reconstructed') as count:
        for index, name, image in saved.each(sources, line.say, count):
            generator = torch.Generator().manual_seed(seed + index)
            visible = network.draw_visible(1, generator) if given is None else given
            view = views(network, image, visible, saved.options.normalisation)
            loss = view.loss.item()
            pictures = {field: getattr(view, field)[0] for field in shown}
            if grid:
                cell = network.encoder.cell_size
                pictures = {field: with_grid(picture, cell) for field, picture in pictures.items()}
            stem = f'{index:04}_{file_stem(name)}'
            for field in ('masked', 'reconstruction', 'error'):
                write_picture(out / f'{stem}_{field}.png', as_image(pictures[field]))
            if len(rows) < MAX_ON_SHEET:
                rows.append([scaled(picture, SIDE) for picture in pictures.values()])
                texts.append(f'{printable(stem)}, {loss_name} {loss:.3f}')
            losses.append((name, loss))
            line.say(f'{printable(name)}: {loss_name} {loss:.3f} on {network.cells - visible.shape[1]} hidden cells of '
                     f'{network.cells}')
    sheet = out / 'contact_sheet.png'
    about = explanation(network, saved.method.masked_images(saved.options))
    write_picture(sheet, labelled_columns(rows, list(shown.values()), texts, about))
    say(f'{len(losses)} image{"s" * (len(losses) > 1)} in {out}, all on {sheet}'
        + (f' (the first {MAX_ON_SHEET})' if len(losses) > MAX_ON_SHEET else ''))
    return losses


def read_mask_file(path):
    """Read the text of a mask from a file. Raises ValueError."""
    try:
        return Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'--visible={path} is no text file that can be read ({error}): it has # for a '
                         'visible cell and . for a hidden one, or the indices of the visible '
                         'cells') from error


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.reconstruct', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add_network(parser)
    add = parser.add_argument
    add('images', metavar='IMAGES', nargs='+', help='image files, or folders of them')
    add('--out', help='folder for the pictures (default: reconstructed, in the folder of the given file)')
    add('--mask_ratio', '--mask', type=float, help="share of hidden cells; the run's if not given")
    add('--seed', type=int, default=0, help='of the masks (default: 0)')
    add('--visible', metavar='FILE', help='a mask for all images: the grid as lines of # (visible) and . '
        '(hidden), or the indices of the visible cells')
    add('--grid', action='store_true', help='draw lines between the cells')
    args = parser.parse_args(expanded(argv))
    if args.visible is not None and args.mask_ratio is not None:
        parser.error('--visible is the mask itself: leave --mask_ratio away')
    with errors_in_one_sentence():
        mask = None if args.visible is None else read_mask_file(args.visible)
        saved = network_of(args, mask_ratio=args.mask_ratio)
        out = args.out or saved.path.parent / 'reconstructed'
        reconstruct(saved, args.images, out, args.seed, mask, args.grid)


if __name__ == '__main__':
    main()
