"""A page in your browser to play with pretrained networks: drop an image, hide cells by a click, see what is reconstructed.

    python -m pretrain.playground output_my_run output_other_run        # then open http://127.0.0.1:7860

Needs gradio (pretrain/requirements.txt). Nothing is sent anywhere: the page is served to this machine only, unless --host says
otherwise.
"""
import argparse
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from common.cli import errors_in_one_sentence, needs, reader_may_leave
from common.demo_world import draw
from common.images import check_channels
from pretrain.card import as_markdown
from pretrain.masks import of_grid, to_visible
from pretrain.pictures import enlarged, level_pictures, views, with_grid
from pretrain.saved import add_network, network_of

SIDE = 448  # pixels of a picture on the page, about
SHOWN = ('reconstruction', 'own', 'error')
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # not EPS, which Pillow hands to Ghostscript
LABELS = ("reconstruction (true cells' mean, deviation)", 'without them', 'error')


def shown(picture, cell=None):
    """A picture (1, 3, H, W) as large as the page shows it; with lines between the cells if their side is given."""
    large = enlarged(picture, SIDE)
    if cell is not None:
        large = with_grid(large, cell * large.shape[-1] // picture.shape[-1])
    return to_pil_image(large[0])


class Playground:
    """What the page does, without the page. The mask is that of the first network; the others get it on their own grids."""

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

    def look(self, image, is_visible):
        """(masked picture, [(reconstruction, own, error, [(level, caption)], loss) of each network]); PIL images."""
        visible, results, masked = to_visible(is_visible, self.grid), [], None
        for saved in self.networks:
            encoder, x = saved.spark.encoder, saved.prepare(image)
            own = of_grid(visible, self.grid, encoder.grid)
            view = views(saved.spark, x, own, saved.options.normalisation)
            if masked is None:
                masked = shown(view.masked, encoder.cell_size)
            levels = [(shown(picture), f'stride {stride}: {picture.shape[-2]} x {picture.shape[-1]}')
                      for stride, picture in level_pictures(saved.spark, x, own).items()]
            results.append((*(shown(getattr(view, what)) for what in SHOWN), levels, view.loss.item()))
        return masked, results


def page(play):
    """The page, as gradio.Blocks."""
    import gradio as gr
    ratio = play.networks[0].options.mask_ratio

    def update(image, is_visible):
        masked, results = play.look(image, is_visible)
        hidden = f'{is_visible.count(False)} of {len(is_visible)} cells hidden'
        outputs = []
        for *pictures, levels, loss in results:
            outputs += [*pictures, levels, f'loss on the hidden cells {loss:.3f}']
        return masked, hidden, *outputs

    def opened(file, is_visible):
        try:
            with Image.open(file, formats=FORMATS) as image:
                image.load()
                play.networks[0].prepare(image)  # says what is wrong with it
        except Exception as error:  # whatever a file can do to a reader
            raise gr.Error(f'{Path(file).name} is no image that can be read ({type(error).__name__})') from error
        return image, *update(image, is_visible)

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
        image, is_visible = gr.State(first), gr.State(mask)
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label='image', file_types=['image'], elem_id='file', height=120)
                slider = gr.Slider(0, 1, ratio, step=0.01, label='share of hidden cells', elem_id='ratio')
                seed = gr.Number(0, precision=0, minimum=0, label='seed of the mask', elem_id='seed')
                hidden = gr.Markdown(elem_id='hidden')
            masked = gr.Image(label='what the network sees: click a cell', interactive=False, elem_id='masked', scale=2,
                              format='png', buttons=[])
        outputs = [masked, hidden]
        for number, saved in enumerate(play.networks):
            gr.Markdown(f'## {as_markdown(saved.name)}: {as_markdown(saved.model)}')
            with gr.Row():
                outputs += [gr.Image(label=label, interactive=False, format='png', buttons=['fullscreen'],
                                     elem_id=f'{what}{number}') for what, label in zip(SHOWN, LABELS)]
            loss = gr.Markdown(elem_id=f'loss{number}')
            with gr.Accordion('feature pyramid: the three principal components of each level as colours', open=False):
                levels = gr.Gallery(columns=4, height=320, format='png', elem_id=f'levels{number}', label='levels')
            outputs += [levels, loss]
        file.upload(opened, [file, is_visible], [image, *outputs])
        for knob in (slider.change, seed.change):
            knob(redrawn, [image, slider, seed], [is_visible, *outputs], show_progress='hidden', trigger_mode='always_last')
        # Without the veil of progress, which would swallow the next click.
        masked.select(clicked, [image, is_visible], [is_visible, *outputs], show_progress='hidden', trigger_mode='multiple')
        blocks.load(update, [image, is_visible], outputs)
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
    args = parser.parse_args(argv)
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
