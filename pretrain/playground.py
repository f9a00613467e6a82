"""A page in your browser to play with pretrained networks.

    python -m pretrain.playground output_my_run output_other_run        # then open http://127.0.0.1:7860

Drop an image, hide cells by a click, and see what is reconstructed. The mask is drawn on the first network's
grid of cells. Another network sees those cells of its own grid of which half or more is visible; what it sees
stands beside its reconstruction.

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

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from common.cli import errors_in_one_sentence, expanded, needs, reader_may_leave
from common.demo_world import draw
from common.images.files import check_channels
from pretrain.arguments import add_network, network_of
from pretrain.results.card import as_markdown
from pretrain.results.pictures import enlarged, level_pictures, views, with_grid
from pretrain.results.typed_masks import on_other_grid, to_visible

SIDE = 448  # pixels of a picture on the page, about
SHOWN = {  # {field of Views: label of its picture}, by what a network predicts
    'normalised': {'reconstruction': "reconstruction (true cells' mean, deviation)", 'own': 'without them',
                   'error': 'error'},
    'pixels': {'reconstruction': 'reconstruction (predicted pixels)', 'error': 'error'}}
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # not EPS, which Pillow hands to Ghostscript
MAX_PIXELS = 2 ** 26  # of an image


@dataclass(frozen=True)
class Look:
    """What there is to see of an image by one network, as PIL images.

    masked: what the network sees, with lines between its cells. pictures: {field of Views: picture}, those
    that SHOWN has for what the network predicts. levels: [(picture, caption)] of the feature pyramid. loss:
    on the hidden cells. hidden: how many of its `cells` are hidden.
    """
    masked: Image.Image
    pictures: dict
    levels: list
    loss: float
    hidden: int
    cells: int


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
    return to_pil_image(large[0])


class Playground:
    """What the page does, without the page.

    A mask is a list of booleans, True where a cell is visible, on the first network's grid; the other
    networks get it on their own grids.
    """

    def __init__(self, networks):
        for saved in networks:
            saved.require_decoder()
            check_channels(saved.options.in_chans)
        self.networks = networks
        self.spark = networks[0].spark
        self.grid = self.spark.encoder.grid

    def draw(self, ratio, seed):
        """Draw a random mask with at least one visible and one hidden cell.

        ratio: share of hidden cells.
        """
        number = int(seed or 0) % 2 ** 63  # the page's box may be emptied, which is None
        generator = torch.Generator().manual_seed(number)
        order = torch.rand(self.spark.cells, generator=generator).argsort()
        num_visible = min(max(round(self.spark.cells * (1 - ratio)), 1), self.spark.cells - 1)
        is_visible = torch.zeros(self.spark.cells, dtype=torch.bool)
        is_visible[order[:num_visible]] = True
        return is_visible.tolist()

    def toggle(self, is_visible, x, y):
        """Return a mask with one cell changed: the one at pixel (x, y) of the page's picture.

        The mask stays as it is if otherwise all cells would be visible, or none.
        """
        scale = max(1, SIDE // self.spark.encoder.input_size[0])
        side = scale * self.spark.encoder.cell_size
        row, column = int(y) // side, int(x) // side
        toggled = list(is_visible)
        toggled[row * self.grid[1] + column] ^= True
        return toggled if any(toggled) and not all(toggled) else is_visible

    def opened(self, file):
        """Return an image file as each network takes it, for `look`. Raises ValueError."""
        return [read_upload(file, saved.prepare) for saved in self.networks]

    def look(self, image, is_visible):
        """Return the Look of each network at an image, a PIL image or what `opened` returned.

        Raises ValueError for an image that a network cannot take.
        """
        visible = to_visible(is_visible, self.grid)
        images = image if isinstance(image, list) else [saved.prepare(image) for saved in self.networks]
        return [self.look_of(saved, image, visible) for saved, image in zip(self.networks, images)]

    def look_of(self, saved, image, visible):
        """Return the Look of one network. visible: the mask on the first network's grid."""
        spark = saved.spark
        encoder = spark.encoder
        own = on_other_grid(visible, self.grid, encoder.grid)
        view = views(spark, image, own, saved.options.normalisation)
        levels = [(shown(picture), f'stride {stride}: {picture.shape[-2]} x {picture.shape[-1]}')
                  for stride, picture in level_pictures(spark, image, own).items()]
        pictures = {field: shown(getattr(view, field)) for field in SHOWN[spark.target]}
        return Look(shown(view.masked, encoder.cell_size), pictures, levels, view.loss.item(),
                    spark.cells - own.shape[1], spark.cells)

    def values(self, image, is_visible):
        """Return what the page shows of an image, in the order of its parts in `page`."""
        looks = self.look(image, is_visible)
        values = [looks[0].masked, f'{looks[0].hidden} of {looks[0].cells} cells hidden']
        for number, look in enumerate(looks):
            if number:  # the first network's picture is the one to click on
                values.append(look.masked)
            loss = f'loss on the hidden cells {look.loss:.3f} ({look.hidden} of {look.cells} are hidden)'
            values += [*look.pictures.values(), look.levels, loss]
        return values


def page(play):
    """Return the page and its theme: (gradio.Blocks, gradio.Theme)."""
    import gradio as gr
    ratio = play.networks[0].options.mask_ratio
    first = draw('wheel_rays', np.random.default_rng(3), max(play.spark.encoder.input_size))
    with gr.Blocks(title='SparK playground', analytics_enabled=False) as blocks:
        gr.Markdown('# SparK playground\nDrop an image. Click a cell to hide or to show it, or let the '
                    'slider hide some.')
        image = gr.State(first)
        is_visible = gr.State(play.draw(ratio, 0))
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label='image', elem_id='file', height=120)
                problem = gr.Markdown(elem_id='problem')
                slider = gr.Slider(0, 1, ratio, step=0.01, label='share of hidden cells', elem_id='ratio')
                seed = gr.Number(0, precision=0, minimum=0, label='seed of the mask', elem_id='seed')
                hidden = gr.Markdown(elem_id='hidden')
            masked = gr.Image(label='what the network sees: click a '
                                    'cell', interactive=False, elem_id='masked', scale=2,
                              format='png', buttons=[])
        outputs = [masked, hidden]
        for number, saved in enumerate(play.networks):
            outputs += parts_of(number, saved)
        opened, redrawn, clicked = handlers(play, len(outputs))
        file.upload(opened, [file, is_visible], [image, *outputs, problem])
        for changed in (slider.change, seed.change):
            changed(redrawn, [image, slider, seed], [is_visible, *outputs], show_progress='hidden',
                    trigger_mode='always_last')
        # Without the veil of progress, which would swallow the next click.
        masked.select(clicked, [image, is_visible], [is_visible, *outputs], show_progress='hidden',
                      trigger_mode='multiple')
        blocks.load(play.values, [image, is_visible], outputs)
    font = ('system-ui', 'sans-serif')  # gradio's own would be fetched from the network
    return blocks, gr.themes.Default(font=font, font_mono=('monospace',))


def parts_of(number, saved):
    """Put what shows one network's results onto the page. Returns the parts whose values change."""
    import gradio as gr
    gr.Markdown(f'## {as_markdown(saved.name)}: {as_markdown(saved.model)}')
    pictures = {'interactive': False, 'format': 'png', 'buttons': ['fullscreen']}
    parts = []
    with gr.Row():
        if number:
            parts.append(gr.Image(label='what the network sees', elem_id=f'masked{number}', **pictures))
        parts += [gr.Image(label=label, elem_id=f'{field}{number}', **pictures)
                  for field, label in SHOWN[saved.spark.target].items()]
    loss = gr.Markdown(elem_id=f'loss{number}')
    with gr.Accordion('feature pyramid: the three principal components of each level as colours', open=False):
        levels = gr.Gallery(columns=4, height=320, format='png', elem_id=f'levels{number}', label='levels')
    return [*parts, levels, loss]


def handlers(play, num_outputs):
    """Return the functions that gradio calls: (opened, redrawn, clicked).

    They return the values of the image or the mask, of the parts of the page, and of the problem, as `page`
    lists them. num_outputs: how many parts show results.
    """
    import gradio as gr

    def opened(file, is_visible):
        """Show an uploaded image. If it cannot be read, a sentence says so, and the page stays as it is."""
        try:
            image = play.opened(file)
            return image, *play.values(image, is_visible), ''
        except ValueError as error:
            text = f'{Path(file).name} is no image that can be read ({error}): the one before is still here'
            return *(gr.skip() for _ in range(1 + num_outputs)), f'**{as_markdown(text)}**'

    def redrawn(image, ratio, seed):
        """Draw another mask."""
        is_visible = play.draw(ratio, seed)
        return is_visible, *play.values(image, is_visible)

    def clicked(image, is_visible, event: gr.SelectData):
        """Hide or show a cell."""
        is_visible = play.toggle(is_visible, *event.index)
        return is_visible, *play.values(image, is_visible)

    return opened, redrawn, clicked


def confine(folder):
    """Let gradio serve the files of one folder, which no other program has, and ask the network for nothing.

    By itself it serves whatever lies in /tmp/gradio, where every gradio program of this machine puts what was
    uploaded to it, and .gradio/cached_examples in the working directory. To be called before gradio is
    imported.
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
            blocks, theme = page(play)
            host = f'[{args.host}]' if ':' in args.host else args.host
            print(f'http://{host}:{args.port} (control-C ends it)', flush=True)
            blocks.launch(server_name=args.host, server_port=args.port, inbrowser=args.open, share=False,
                          quiet=True, theme=theme, max_file_size='50mb', run_history=False,
                          enable_monitoring=False)


if __name__ == '__main__':
    main()
