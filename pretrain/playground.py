"""A page in your browser to play with pretrained networks: drop an image, hide cells by a click, see what is reconstructed.

    python -m pretrain.playground output_my_run output_other_run        # then open http://127.0.0.1:7860

The mask is drawn on the first network's grid of cells. Of another grid those cells are visible of which half
or more is there. What each of the other networks sees stands beside its reconstruction.

Needs gradio (pretrain/requirements.txt). Nothing is sent anywhere: the page is served to this machine only, unless --host says
otherwise.
"""
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
from pretrain.results.typed_masks import of_grid, to_visible

SIDE = 448  # pixels of a picture on the page, about
SHOWN = {  # labels of the pictures, by what a network predicts
    'normalised': {'reconstruction': "reconstruction (true cells' mean, deviation)", 'own': 'without them', 'error': 'error'},
    'pixels': {'reconstruction': 'reconstruction (predicted pixels)', 'error': 'error'}}
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # not EPS, which Pillow hands to Ghostscript
MOST = 2 ** 26  # pixels of an image


@dataclass(frozen=True)
class Look:
    """What there is to see of an image by one network: PIL images, levels [(PIL image, caption)], the loss.

    masked: what the network sees, with lines between its cells. pictures: those that SHOWN has for what the network
    predicts, in its order, as in pictures.Views. hidden: how many of its `cells` are hidden.
    """
    masked: Image.Image
    pictures: dict
    levels: list
    loss: float
    hidden: int
    cells: int


def read_upload(file, prepare):
    """What prepare(PIL image) makes of a file, whose first image it is given. Raises ValueError that says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of what a file holds besides its pixels
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST:
                    raise Image.DecompressionBombError
                return prepare(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f'it has more than {MOST / 1e6:.0f} million pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f'it is none of {", ".join(FORMATS)}, or damaged') from error
    except Exception as error:  # whatever a file can do to a reader
        raise ValueError(f'{type(error).__name__}: {error}') from error


def shown(picture, cell=None):
    """A picture (1, 3, H, W) as large as the page shows it; with lines between the cells if their side is given."""
    large = enlarged(picture, SIDE)
    if cell is not None:
        large = with_grid(large, cell * large.shape[-1] // picture.shape[-1])
    return to_pil_image(large[0])


class Playground:
    """What the page does, without the page. The mask is the first network's; others get it on their grids."""

    def __init__(self, networks):
        for saved in networks:
            saved.require_decoder()
            check_channels(saved.options.in_chans)
        self.networks, self.grid, self.spark = networks, networks[0].spark.encoder.grid, networks[0].spark

    def draw(self, ratio, seed):
        """A random mask, a list of booleans, True where a cell is visible; at least one cell is visible and one hidden."""
        generator = torch.Generator().manual_seed(int(seed or 0) % 2 ** 63)  # an emptied box is None
        order = torch.rand(self.spark.cells, generator=generator).argsort()
        count = min(max(round(self.spark.cells * (1 - ratio)), 1), self.spark.cells - 1)
        is_visible = torch.zeros(self.spark.cells, dtype=torch.bool)
        is_visible[order[:count]] = True
        return is_visible.tolist()

    def toggle(self, is_visible, x, y):
        """The mask with the cell at pixel (x, y) of the page's picture turned over, unless none or all would be hidden."""
        scale = max(1, SIDE // self.spark.encoder.input_size[0])
        row, column = (int(at) // (scale * self.spark.encoder.cell_size) for at in (y, x))
        turned = list(is_visible)
        turned[row * self.grid[1] + column] ^= True
        return turned if any(turned) and not all(turned) else is_visible

    def opened(self, file):
        """An image file as each network takes it, which `look` takes too. Raises ValueError."""
        return [read_upload(file, saved.prepare) for saved in self.networks]

    def look(self, image, is_visible):
        """[Look] of each network, at a PIL image or what `opened` gave. Raises ValueError for an image that it cannot take."""
        visible, looks = to_visible(is_visible, self.grid), []
        images = image if isinstance(image, list) else [saved.prepare(image) for saved in self.networks]
        for saved, x in zip(self.networks, images):
            spark, encoder = saved.spark, saved.spark.encoder
            own = of_grid(visible, self.grid, encoder.grid)
            view = views(spark, x, own, saved.options.normalisation)
            levels = [(shown(picture), f'stride {stride}: {picture.shape[-2]} x {picture.shape[-1]}')
                      for stride, picture in level_pictures(spark, x, own).items()]
            pictures = {what: shown(getattr(view, what)) for what in SHOWN[spark.target]}
            looks.append(Look(shown(view.masked, encoder.cell_size), pictures, levels, view.loss.item(),
                              spark.cells - own.shape[1], spark.cells))
        return looks


def page(play):
    """The page, as gradio.Blocks."""
    import gradio as gr
    ratio = play.networks[0].options.mask_ratio

    def update(image, is_visible):
        looks, values = play.look(image, is_visible), []
        for number, look in enumerate(looks):
            masked = [look.masked] if number else []  # the first network's is the one to click on
            values += [*masked, *look.pictures.values(), look.levels,
                       f'loss on the hidden cells {look.loss:.3f} ({look.hidden} of {look.cells} are hidden)']
        return looks[0].masked, f'{looks[0].hidden} of {looks[0].cells} cells hidden', *values

    def opened(file, is_visible):
        """The image that was uploaded; if it cannot be read, a sentence, and the page stays as it is."""
        try:
            image = play.opened(file)
            return image, *update(image, is_visible), ''
        except ValueError as error:
            said = f'{Path(file).name} is no image that can be read ({error}): the one before is still here'
            return *(gr.skip() for _ in (picture, *outputs)), f'**{as_markdown(said)}**'

    def redrawn(image, ratio, seed):
        is_visible = play.draw(ratio, seed)
        return is_visible, *update(image, is_visible)

    def clicked(image, is_visible, event: gr.SelectData):
        is_visible = play.toggle(is_visible, *event.index)
        return is_visible, *update(image, is_visible)

    first, mask = draw('wheel_rays', np.random.default_rng(3), max(play.spark.encoder.input_size)), play.draw(ratio, 0)
    font = ('system-ui', 'sans-serif')  # gradio's own would be fetched from the network
    with gr.Blocks(title='SparK playground', analytics_enabled=False) as blocks:
        gr.Markdown('# SparK playground\nDrop an image. Click a cell to hide or to show it, or let the slider hide some.')
        picture, is_visible = gr.State(first), gr.State(mask)
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label='image', elem_id='file', height=120)
                problem = gr.Markdown(elem_id='problem')
                slider = gr.Slider(0, 1, ratio, step=0.01, label='share of hidden cells', elem_id='ratio')
                seed = gr.Number(0, precision=0, minimum=0, label='seed of the mask', elem_id='seed')
                hidden = gr.Markdown(elem_id='hidden')
            masked = gr.Image(label='what the network sees: click a cell', interactive=False, elem_id='masked', scale=2,
                              format='png', buttons=[])
        outputs = [masked, hidden]
        for number, saved in enumerate(play.networks):
            gr.Markdown(f'## {as_markdown(saved.name)}: {as_markdown(saved.model)}')
            with gr.Row():
                if number:
                    outputs.append(gr.Image(label='what the network sees', interactive=False, format='png',
                                            buttons=['fullscreen'], elem_id=f'masked{number}'))
                outputs += [gr.Image(label=label, interactive=False, format='png', buttons=['fullscreen'],
                                     elem_id=f'{what}{number}') for what, label in SHOWN[saved.spark.target].items()]
            loss = gr.Markdown(elem_id=f'loss{number}')
            with gr.Accordion('feature pyramid: the three principal components of each level as colours', open=False):
                levels = gr.Gallery(columns=4, height=320, format='png', elem_id=f'levels{number}', label='levels')
            outputs += [levels, loss]
        file.upload(opened, [file, is_visible], [picture, *outputs, problem])
        for knob in (slider.change, seed.change):
            knob(redrawn, [picture, slider, seed], [is_visible, *outputs], show_progress='hidden',
                 trigger_mode='always_last')
        # Without the veil of progress, which would swallow the next click.
        masked.select(clicked, [picture, is_visible], [is_visible, *outputs], show_progress='hidden',
                      trigger_mode='multiple')
        blocks.load(update, [picture, is_visible], outputs)
    return blocks, gr.themes.Default(font=font, font_mono=('monospace',))


def confine(folder):
    """Let gradio serve the files of one folder, which no other program has, and ask the network for nothing.

    By itself it serves whatever lies in /tmp/gradio, where every gradio program of this machine puts what was uploaded to it,
    and .gradio/cached_examples in the working directory. To be called before gradio is imported.
    """
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=str(Path(folder, 'examples')), GRADIO_ALLOWED_PATHS='')
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
            raise ValueError(f'cannot serve on {host}, port {port} ({error.strerror}): give another --port, such as '
                             f'{port % 65535 + 1}') from error


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.playground', description=__doc__.splitlines()[0], allow_abbrev=False)
    add_network(parser, several=True)
    parser.add_argument('--host', default='127.0.0.1', help='address to serve on (default: 127.0.0.1, this machine only)')
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
            blocks.launch(server_name=args.host, server_port=args.port, inbrowser=args.open, share=False, quiet=True,
                          theme=theme, max_file_size='50mb', run_history=False, enable_monitoring=False)


if __name__ == '__main__':
    main()
