"""A page in your browser to play with pretrained networks.

    python -m pretrain.playground output_my_run output_other_run        # then open http://127.0.0.1:7860

Drop an image, hide cells by a click, and see what is reconstructed, beside the original and what the network
saw of it. A mask belongs to the cells of one network: of the first, or of the one whose picture was clicked.
The others see those of their own cells of which half or more is visible. The page itself is in playground_page.py.

Needs gradio (pretrain/requirements.txt). Nothing is sent anywhere: the page is served to this machine only,
unless --host says otherwise.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
import os
import socket
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from common.cli import errors_in_one_sentence, expanded, needs, reader_may_leave
from common.images.files import check_channels
from common.pictures import as_image, labelled_columns
from pretrain.arguments import add_network, network_of
from pretrain.playground_page import page
from pretrain.results.pictures import captions, enlarged, level_pictures, views, with_grid
from pretrain.results.typed_masks import on_other_grid, to_visible

SIDE = 448  # pixels of a picture on the page, about
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # not EPS, which Pillow hands to Ghostscript
MAX_PIXELS = 2 ** 26  # of an image


@dataclass(frozen=True)
class Mask:
    """Which cells of an image are visible.

    network: the number of the network whose cells are meant. is_visible: a boolean for each of them.
    """
    network: int
    is_visible: list


@dataclass(frozen=True)
class Look:
    """What there is to see of an image by one network, as PIL images.

    pictures: {field of Views: picture}, those that `captions` has for the network; lines are drawn between
    the cells of the masked one. levels: [(picture, caption)] of the feature pyramid. loss: on the hidden
    cells. hidden: how many of its `cells` are hidden. loss_name: what the loss is called.
    """
    pictures: dict
    levels: list
    loss: float
    hidden: int
    cells: int
    loss_name: str


def read_upload(file, prepare):
    """Open an image file and return prepare(PIL image). Raises ValueError that says what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about what a file holds besides its pixels
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return prepare(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f'it has more than {MAX_PIXELS / 1e6:.0f} million pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f'it is none of {", ".join(FORMATS)}, or damaged') from error
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f'{type(error).__name__}: {error}') from error


def shown(picture, cell=None):
    """Return a picture (1, 3, H, W) as large as the page shows it.

    cell: the side of cells in pixels, for lines between them.
    """
    large = enlarged(picture, SIDE)
    if cell is not None:
        large = with_grid(large, cell * large.shape[-1] // picture.shape[-1])
    return as_image(large[0])


class Playground:
    """What the page does, without the page."""

    def __init__(self, networks):
        for saved in networks:
            saved.require_decoder()
            check_channels(saved.options.in_chans)
        self.networks = networks

    def encoder(self, network):
        """Return the encoder of the network with this number."""
        return self.networks[network].network.encoder

    def draw(self, ratio, seed):
        """Draw a random Mask of the first network, with at least one visible and one hidden cell.

        ratio: share of hidden cells.
        """
        cells = self.networks[0].network.cells
        number = int(seed or 0) % 2 ** 63  # the page's box may be emptied, which is None
        order = torch.rand(cells, generator=torch.Generator().manual_seed(number)).argsort()
        num_visible = min(max(round(cells * (1 - ratio)), 1), cells - 1)
        is_visible = torch.zeros(cells, dtype=torch.bool)
        is_visible[order[:num_visible]] = True
        return Mask(0, is_visible.tolist())

    def all_but_one(self, is_visible):
        """Return a Mask of the first network whose cells are all visible, or all hidden, but for the middle one."""
        h, w = self.encoder(0).grid
        cells = [is_visible] * (h * w)
        cells[h // 2 * w + w // 2] = not is_visible
        return Mask(0, cells)

    def invert(self, mask):
        """Return the Mask with what was hidden visible, and the other way round."""
        return Mask(mask.network, [not cell for cell in mask.is_visible])

    def toggle(self, mask, network, x, y):
        """Return the Mask with one cell changed: the one at pixel (x, y) of the picture of a network.

        It stays as it is if otherwise all cells would be visible, or none.
        """
        encoder = self.encoder(network)
        side = max(1, SIDE // encoder.input_size[0]) * encoder.cell_size
        cells = torch.zeros(encoder.grid, dtype=torch.bool)
        cells.view(-1)[self.visible(mask, network)] = True
        cells[int(y) // side, int(x) // side] ^= True
        return mask if cells.all() or not cells.any() else Mask(network, cells.flatten().tolist())

    def visible(self, mask, network):
        """Return which cells of a network are visible, LongTensor (1, k)."""
        grid = self.encoder(mask.network).grid
        return on_other_grid(to_visible(mask.is_visible, grid), grid, self.encoder(network).grid)

    def opened(self, file):
        """Return an image file as each network takes it, for `look`. Raises ValueError."""
        return [read_upload(file, saved.prepare) for saved in self.networks]

    def look(self, image, mask):
        """Return the Look of each network at an image, a PIL image or what `opened` returned.

        Raises ValueError for an image that a network cannot take.
        """
        images = image if isinstance(image, list) else [saved.prepare(image) for saved in self.networks]
        return [self.look_of(saved, image, self.visible(mask, number))
                for number, (saved, image) in enumerate(zip(self.networks, images))]

    def look_of(self, saved, image, visible):
        """Return the Look of one network."""
        network = saved.network
        view = views(network, image, visible, saved.options.normalisation)
        levels = [(shown(picture), f'stride {stride}: {picture.shape[-2]} x {picture.shape[-1]}')
                  for stride, picture in level_pictures(network, image, visible).items()]
        pictures = {field: shown(getattr(view, field)) for field in captions(network)}
        pictures['masked'] = shown(view.masked, network.encoder.cell_size)
        return Look(pictures, levels, view.loss.item(), network.cells - visible.shape[1], network.cells,
                    saved.method.loss_meaning(saved.options.as_dict()).of_cells)

    def values(self, image, mask):
        """Return what the page shows of an image, in the order of its parts in `page`."""
        values = []
        for look in self.look(image, mask):
            loss = f'{look.loss_name} on the hidden cells {look.loss:.3f}; {look.hidden} of {look.cells} cells hidden'
            levels, texts = zip(*look.levels)
            values += [*look.pictures.values(), loss, labelled_columns([levels], texts)]
        return values


def confine(folder):
    """Let gradio serve the files of one folder, which no other program has, and ask the network for nothing.

    By itself it serves whatever lies in /tmp/gradio, where every gradio program of this machine puts what was
    uploaded to it, and .gradio/cached_examples in the working directory. To be called before gradio is imported.
    """
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=str(Path(folder, 'examples')),
                      GRADIO_ALLOWED_PATHS='')
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # it would ask for its latest version


def check_address(host, port):
    """Raise a ValueError if nothing can be served there."""
    if not 0 < port < 65536:
        raise ValueError(f'--port is a number from 1 to 65535, not {port}')
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f'--host={host} is no address of this machine ({error.strerror})') from error
    with socket.socket(family, kind) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            raise ValueError(f'cannot serve on {host}, port {port} ({error.strerror}): give another --port, '
                             f'such as {port % 65535 + 1}') from error


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.playground', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add_network(parser, several=True)
    parser.add_argument('--host', default='127.0.0.1', help='address to serve on (default: 127.0.0.1, this '
                                                            'machine only)')
    parser.add_argument('--port', type=int, default=7860, help='(default: 7860)')
    parser.add_argument('--open', action='store_true', help='open the page in a browser')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        needs('gradio')
        check_address(args.host, args.port)
        play = Playground([network_of(args, source) for source in args.source])
        with tempfile.TemporaryDirectory(prefix='playground') as folder:
            confine(folder)
            blocks, appearance = page(play)
            host = f'[{args.host}]' if ':' in args.host else args.host
            print(f'http://{host}:{args.port} (control-C ends it)', flush=True)
            blocks.launch(server_name=args.host, server_port=args.port, inbrowser=args.open, share=False,
                          quiet=True, max_file_size='50mb', run_history=False, enable_monitoring=False,
                          footer_links=[], **appearance)


if __name__ == '__main__':
    main()
