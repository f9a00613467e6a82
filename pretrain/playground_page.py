"""The page of the playground, made with gradio: what stands where, and what happens on a click.

`page` is given a Playground (playground.py), which does the work.
"""
from pathlib import Path

import numpy as np

from common.demo_objects import draw
from pretrain.results.card import as_markdown
from pretrain.results.pictures import captions, explanation

HINT = ('Drop an image. Click a cell of a masked picture to hide or to show it; the other networks hide the same '
        'area, as far as their cells allow. One cell at least stays visible, and one hidden.')
# Pictures stand beside each other where there is room, in two columns on a phone; captions stand above them.
CSS = """
.pictures { display: grid !important; gap: 12px; align-items: end;
            grid-template-columns: repeat(auto-fit, minmax(min(45%, 200px), 1fr)); }
.pictures > * { min-width: 0 !important; gap: 4px !important; }
.caption p { font-size: 14px; line-height: 1.3; }
.buttons { display: grid !important; grid-template-columns: 1fr 1fr; }
@media (max-width: 640px) { .pictures { margin: 0 -22px; width: calc(100% + 44px) !important; } }
"""


def page(play):
    """Return the page and how it looks: gradio.Blocks, and arguments of its `launch`."""
    import gradio as gr
    ratio = play.networks[0].options.mask_ratio
    title = f'{" and ".join(dict.fromkeys(saved.method.title for saved in play.networks))} playground'
    first = draw('wheel_rays', np.random.default_rng(3), max(play.encoder(0).input_size))
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f'# {title}\n{HINT}')
        image = gr.State(first)
        mask = gr.State(play.draw(ratio, 0))
        with gr.Row():
            with gr.Column(min_width=280):
                file = gr.File(label='image', elem_id='file', height=120)
                problem = gr.Markdown(elem_id='problem')
            with gr.Column(min_width=280):
                slider = gr.Slider(0, 1, ratio, step=0.01, label='share of hidden cells', elem_id='ratio')
                seed = gr.Number(0, precision=0, minimum=0, label='seed of the mask', elem_id='seed')
            with gr.Column(min_width=280), gr.Row(elem_classes='buttons'):
                hide, show, random, invert = (gr.Button(text, size='md', min_width=0, elem_id=text.split()[0])
                                              for text in ('hide all', 'show all', 'random', 'invert'))
        parts = [parts_of(number, saved) for number, saved in enumerate(play.networks)]
        outputs = [part for parts_of_one in parts for part in parts_of_one]
        do = handlers(play, len(outputs))
        file.upload(do['opened'], [file, mask], [image, *outputs, problem])
        # Without the veil of progress, which would swallow the next click.
        at_once = {'show_progress': 'hidden', 'trigger_mode': 'always_last'}
        for changed in (slider.change, seed.change):
            changed(do['redrawn'], [image, slider, seed], [mask, *outputs], **at_once)
        random.click(do['reseeded'], seed, seed, **at_once)  # whose change draws another mask
        for button, name in ((hide, 'hidden'), (show, 'shown'), (invert, 'inverted')):
            button.click(do[name], [image, mask], [mask, *outputs], **at_once)
        for number, (_, masked, *_) in enumerate(parts):
            masked.select(do['clicked'](number), [image, mask], [mask, *outputs], show_progress='hidden',
                          trigger_mode='multiple')
        blocks.load(play.values, [image, mask], outputs)
    font = ('system-ui', 'sans-serif')  # gradio's own would be fetched from the network
    return blocks, {'theme': gr.themes.Default(font=font, font_mono=('monospace',)), 'css': CSS}


def parts_of(number, saved):
    """Put what shows one network's results onto the page.

    Returns the parts whose values change: the pictures of `captions`, the loss, the levels.
    """
    import gradio as gr
    encoder = saved.network.encoder
    h, w = encoder.grid
    gr.Markdown(f'## {as_markdown(saved.name)}: {as_markdown(saved.model)}\n{h} x {w} cells of '
                f'{encoder.cell_size} px, pretrained with {100 * saved.options.mask_ratio:.0f} % of them hidden')
    parts = []
    with gr.Row(elem_classes='pictures'):
        for field, caption in captions(saved.network).items():
            is_masked = field == 'masked'
            with gr.Column(min_width=0):
                gr.Markdown('masked: **click a cell**' if is_masked else caption, elem_classes='caption')
                parts.append(gr.Image(label=caption, show_label=False, interactive=False, format='png',
                                      buttons=[], elem_id=f'{field}{number}'))
    loss = gr.Markdown(elem_id=f'loss{number}')
    with gr.Accordion('features, and what the pictures show', open=False):
        about = explanation(saved.network, saved.method.masked_images(saved.options))
        gr.Markdown(f'{about} Below: the three principal components of each level of the feature pyramid as colours.')
        levels = gr.Image(label='features', show_label=False, interactive=False, format='png', buttons=[],
                          elem_id=f'levels{number}')
    return [*parts, loss, levels]


def handlers(play, num_outputs):
    """Return {name: function that gradio calls}.

    They return the values of the image or the mask, of the parts of the page, and of the problem, as `page`
    lists them. num_outputs: how many parts show results.
    """
    import gradio as gr

    def opened(file, mask):
        """Show an uploaded image. If it cannot be read, a sentence says so, and the page stays as it is."""
        try:
            image = play.opened(file)
            return image, *play.values(image, mask), ''
        except ValueError as error:
            text = f'{Path(file).name} is no image that can be read ({error}): the one before is still here'
            return *(gr.skip() for _ in range(1 + num_outputs)), f'**{as_markdown(text)}**'

    def redrawn(image, ratio, seed):
        mask = play.draw(ratio, seed)
        return mask, *play.values(image, mask)

    def reseeded(seed):
        return int(seed or 0) + 1

    def hidden(image, _):
        mask = play.all_but_one(is_visible=False)
        return mask, *play.values(image, mask)

    def shown(image, _):
        mask = play.all_but_one(is_visible=True)
        return mask, *play.values(image, mask)

    def inverted(image, mask):
        mask = play.invert(mask)
        return mask, *play.values(image, mask)

    def clicked(number):
        """Return the function that hides or shows a cell of the network with this number."""
        def change(image, mask, event: gr.SelectData):
            changed = play.toggle(mask, number, *event.index)
            return changed, *play.values(image, changed)
        return change

    return {'opened': opened, 'redrawn': redrawn, 'reseeded': reseeded, 'hidden': hidden, 'shown': shown,
            'inverted': inverted, 'clicked': clicked}
