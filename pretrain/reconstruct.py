"""Reconstruct images with a pretrained network: pictures of each, and one sheet of all.

    python -m pretrain.reconstruct output_my_run cat.jpg photos/ --out=reconstructed
    python -m pretrain.reconstruct res50_withdecoder_1kpretrained_spark_style.pth cat.jpg --mask_ratio=0.75 --seed=1 --grid
"""
import argparse
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from common.cli import errors_in_one_sentence, expanded, reader_may_leave
from pretrain.arguments import add_network, network_of
from pretrain.results.pictures import captions, contact_sheet, views, with_grid, write_picture
from pretrain.results.typed_masks import read_mask

SHEET = 50  # images on it at most


def reconstruct(saved, sources, out, seed=0, mask=None, grid=False, say=print):
    """Write NUMBER_NAME_masked.png, _reconstruction.png and _error.png of each image and contact_sheet.png into the folder out.

    saved: read_saved(...). sources: files and folders. mask: a text (masks.py), the same for all; drawn for each if None.
    Returns [(file, loss)]. Raises ValueError.
    """
    saved.require_decoder()
    spark, out, rows, texts, losses = saved.spark, Path(out), [], [], []
    shown = captions(spark)
    visible = None if mask is None else read_mask(mask, spark.encoder.grid)
    out.mkdir(parents=True, exist_ok=True)
    for index, name, image in saved.each(sources, say):
        drawn_now = spark.draw_visible(1, torch.Generator().manual_seed(seed + index)) if visible is None else visible
        view = views(spark, image, drawn_now, saved.options.normalisation)
        stem = f'{index:04}_{Path(name).stem}'
        losses.append((name, view.loss.item()))
        texts.append(f'{stem[:18]}\nloss {view.loss.item():.3f}')
        pictures = {what: getattr(view, what)[0] for what in shown}
        if grid:
            pictures = {what: with_grid(picture, spark.encoder.cell_size) for what, picture in pictures.items()}
        for what in ('masked', 'reconstruction', 'error'):
            write_picture(out / f'{stem}_{what}.png', to_pil_image(pictures[what]))
        if len(rows) < SHEET:
            rows.append(list(pictures.values()))
        say(f'{name}: loss {view.loss.item():.3f} on {spark.cells - drawn_now.shape[1]} hidden cells of '
            f'{spark.cells}')
    write_picture(out / 'contact_sheet.png', contact_sheet(rows, shown.values(), texts))
    say(f'{len(losses)} image{"s" * (len(losses) > 1)} in {out}, all on {out / "contact_sheet.png"}'
        + (f' (the first {SHEET})' if len(losses) > SHEET else ''))
    return losses


def mask_file(path):
    """The text of a mask. Raises ValueError."""
    try:
        return Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'--visible={path} is no text file that can be read ({error}): it has # for a visible cell and . for '
                         'a hidden one, or the indices of the visible cells') from error


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.reconstruct', description=__doc__.splitlines()[0], allow_abbrev=False)
    add_network(parser)
    parser.add_argument('images', metavar='IMAGES', nargs='+', help='image files, or folders of them')
    parser.add_argument('--out', default='reconstructed', help='folder for the pictures (default: reconstructed)')
    parser.add_argument('--mask_ratio', '--mask', type=float, help="share of hidden cells; the run's if not given")
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: 0)')
    parser.add_argument('--visible', metavar='FILE', help='a mask for all images: the grid as lines of # (visible) and . '
                        '(hidden), or the indices of the visible cells')
    parser.add_argument('--grid', action='store_true', help='draw lines between the cells')
    args = parser.parse_args(expanded(argv))
    if args.visible is not None and args.mask_ratio is not None:
        parser.error('--visible is the mask itself: leave --mask_ratio away')
    with errors_in_one_sentence():
        mask = None if args.visible is None else mask_file(args.visible)
        saved = network_of(args, mask_ratio=args.mask_ratio)
        reconstruct(saved, args.images, args.out, args.seed, mask, args.grid)


if __name__ == '__main__':
    main()
