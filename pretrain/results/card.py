"""The model card of an exported network (Mitchell et al. 2019): data, recipe, curve, a picture, limits."""
import importlib.util
import re
import textwrap

from PIL import Image

from common.networks.create import is_made_for_one_size, module_of
from common.reliability.checkpoint import write_atomically
from common.words import counted
from pretrain.results.pictures import hidden_cells, read_picture, write_picture
from pretrain.results.read_log import epoch_of, pictures_of, read_log

PAGE_WIDTH = 900  # pixels
TEXT_WIDTH = 110  # characters of a line


def write_card(saved, folder, licence=None):
    """Write README.md into a folder, and curve.png and reconstructions.png where the run has what they show.

    Args:
        saved: the network, of `read_saved`.
        licence: an identifier such as mit or cc-by-4.0, or None.

    Returns sentences on what is missing in the card. Raises ValueError for another licence, and for a log that
    is not as runs write it.
    """
    licence = licence_identifier(licence)
    log = read_log(saved.folder) if saved.folder else None
    remarks = []
    if log is not None and log.epochs and not importlib.util.find_spec('matplotlib'):
        remarks.append('The card has no curve of the loss: for one, pip install matplotlib, and export again')
    curve = ''.join(draw_curve_of(log, folder))
    picture = ''.join(copy_reconstructions(saved, folder))
    unfinished = f'**Unfinished:** {saved.unfinished}.\n\n' if saved.unfinished else ''
    no_licence = '**Licence.** Whoever exported this did not say; ask before you use it.\n\n'
    encoder = saved.network.encoder
    text = TEXT.format(licence=licence or 'other', stated=unfinished + ('' if licence else no_licence),
                       model=saved.model.split('.')[0], tag=saved.method.name,
                       paper=citation(saved.method.paper), data=data(saved),
                       recipe=recipe_table(saved, log), picture=f'{picture}\n\n' if picture else '',
                       curve=curve or 'No log of the training lay beside the weights.',
                       size='x'.join(map(str, encoder.input_size)),
                       channels=counted(encoder.in_chans, 'channel'), registers=registers(saved),
                       other_sizes=other_sizes(saved), **contents(saved))
    write_atomically(folder / 'README.md', lambda file: file.write(text.encode()))
    return remarks


def citation(paper):
    """Return a Paper as Markdown."""
    return in_lines(f'{paper.authors}: *{paper.title}*, {paper.venue}, {paper.link}')


def in_lines(text):
    """Return a paragraph in lines of TEXT_WIDTH."""
    return textwrap.fill(text, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)


def licence_identifier(licence):
    """Return the identifier of a licence as model hubs write it: in small letters. None stays None.

    Raises ValueError for what is no identifier.
    """
    if licence is None:
        return None
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9.+-]*', licence):  # it stands in YAML
        raise ValueError('--licence is an identifier, such as mit, apache-2.0 or cc-by-nc-4.0, not '
                         f'{licence!r}')
    return licence.lower()


def draw_curve_of(log, folder):
    """Yield the Markdown of the loss over the epochs, drawn into the folder.

    Nothing without a log of epochs, and without matplotlib, which draws it.
    """
    if log is not None and log.epochs and importlib.util.find_spec('matplotlib'):
        draw_curve(log.epochs, folder / 'curve.png')
        yield '![loss over the epochs](curve.png)'


def copy_reconstructions(saved, folder):
    """Yield the Markdown of the run's last picture, written into the folder, if there is one."""
    found = pictures_of(saved.folder) if saved.folder else []
    if found:
        # Not copied: in a foreign run it may be a link to any file of this machine.
        write_picture(folder / 'reconstructions.png', wide_enough(read_picture(found[-1])))
        yield ('![reconstructions](reconstructions.png)\n\nImages, what the network saw of them, and their '
               f'reconstructions, after epoch {epoch_of(found[-1])}. {hidden_cells(saved.network.target)}')


def wide_enough(image):
    """Enlarge a PIL image by a whole number, until it is at least as wide as a page shows it."""
    scale = max(1, -(-PAGE_WIDTH // image.width))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


def contents(saved):
    """Return what the text says of the folder: it holds an encoder, or a trained classifier."""
    method = saved.method
    how = f'{method.idea} ([{method.title}]({method.paper.link}), {method.paper.venue}).'
    if not saved.has_classifier:
        holds = "These are the encoder's weights, without classifier and decoder."
        return {'title': f'pretrained with {method.title}', 'gives': 'features',
                'what': in_lines(' '.join([how, holds, *method.trained_besides(saved.network)]))}
    number = saved.weights[saved.head[0]].shape[0]
    holds = (f'These are the weights of a fine-tuned network, with its classifier of {number} classes. **Say here what '
             'it was fine-tuned on.**')
    return {'title': f'a classifier of {number} classes', 'gives': 'logits', 'what': in_lines(f'{how} {holds}')}


def registers(saved):
    """Return the line of Python that registers a network which timm itself has not, '' for one of timm's."""
    name = (module_of(saved.model.split('.')[0]) or '').rpartition('.')[2]
    about = f'{name}.py registers the network, which timm itself has not: give it with the weights'
    return f'import {name}  # {about}\n' if name else ''


def other_sizes(saved):
    """Return what is to be known about images of other sizes."""
    size = saved.network.encoder.input_size
    if is_made_for_one_size(saved.model.split('.')[0], size, saved.options.in_chans):
        return 'the network is made for this\n  size, and for another one with `img_size` of ' \
               '`timm.create_model`, which resizes its positions.'
    return 'other sizes work as they do for any network\n  of its kind.'


def as_markdown(text):
    """Return a text from a file as one line of Markdown that shows it.

    No table cell, code, HTML, link or picture begins in it.
    """
    return re.sub(r'([\\`*$!|&<>\[\]])', r'\\\1', ' '.join(str(text).split()))


def data(saved):
    """Return the paragraph on the images."""
    if saved.images is None:
        return 'The file does not say which images it was trained on. **Fill this in.**'
    return (f'{counted(saved.images, "image")} without labels. **Say here what they show, where they come '
            'from, and what their licence is.**')


def recipe_table(saved, log):
    """Return the rows of the recipe as Markdown. Raises ValueError for a log that is not as runs write it."""
    try:
        return '\n'.join(f'| {name} | {as_markdown(value)} |' for name, value in recipe(saved, log))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = saved.folder / 'pretrain_log.txt'
        raise ValueError(f'{path} is not as a run writes it ({type(error).__name__}: {error}): take it away, '
                         'and the card says nothing of the recipe') from error


def recipe(saved, log):
    """Yield (name, value) of what somebody would need to do the same again. log: of the run, or None."""
    options = saved.options
    encoder = saved.network.encoder
    yield 'network', f'{options.model}, strides {", ".join(map(str, encoder.reductions))}'
    height, width = encoder.input_size
    yield 'image', f'{height} x {width}, {counted(options.in_chans, "channel")}'
    if options.pixel_range is not None:
        yield 'values', '{:g} to {:g} of files of more than 8 bits become 0 to 1'.format(*options.pixel_range)
    yield 'mask', f'{options.mask_ratio:.0%} of cells of {encoder.cell_size} px hidden'
    yield from saved.method.settings(saved.network, options)
    if log is not None:
        yield from recipe_of_log(log)


def recipe_of_log(log):
    """Yield (name, value) of how a run trained, by its log."""
    config = log.config
    low, high = config['crop_scale']
    peak = config['lr'] or config['base_lr'] * config['batch_size'] / 256
    yield 'epochs', f'{log.epochs[-1]["epoch"] if log.epochs else 0} of {config["epochs"]}'
    yield 'batch', config['batch_size']
    yield 'optimiser', f'{config["opt"]}, learning rate up to {peak:.3g}'
    start, end = config['weight_decay'], config['weight_decay_end']
    yield 'weight decay', start if end is None else f'{start} to {end}'
    yield 'crop', f'area {low} to {high}, {"half of them" if config["flip"] else "not"} mirrored'
    losses = [entry['loss'] for entry in log.epochs if entry['loss'] is not None]  # None: no step was finite
    if losses:
        yield 'loss of the last epoch', f'{losses[-1]:.4f}'
    held_out = [entry['val_loss'] for entry in log.epochs if entry.get('val_loss') is not None]
    if held_out:
        yield 'held-out loss', f'{held_out[-1]:.4f}'
    last_start = log.runs[-1]
    versions = ', '.join(f'{name} {version}' for name, version in last_start['versions'].items())
    yield 'program', f'commit {last_start["commit"] or "unknown"}, {versions}'


def draw_curve(epochs, path):
    """Draw the loss over the epochs, and the held-out one where there is one, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 3.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, label in (('loss', 'training'), ('val_loss', 'held-out images')):
        points = [(entry['epoch'], entry[name]) for entry in epochs if entry.get(name) is not None]
        if points:
            axes.plot(*zip(*points), label=label)
    axes.set(xlabel='epoch', ylabel='loss', ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=110)


TEXT = '''---
license: {licence}
library_name: timm
pipeline_tag: image-feature-extraction
tags: [timm, {tag}, self-supervised, masked-image-modeling]
---

# {model}, {title}

{what}

{picture}```python
import timm
{registers}model = timm.create_model('local-dir:FOLDER', pretrained=True)  # {gives}; 'hf-hub:USER/NAME' from a hub
model = timm.create_model('local-dir:FOLDER', pretrained=True, num_classes=10)  # a new classifier, to be trained
```

{stated}## Data

{data}

## Recipe

| | |
|---|---|
{recipe}

{curve}

## Limits

* The features are meant for fine-tuning. Without it, a linear classifier on them is far behind supervised
  weights.
* Pretrained on images of {size} pixels with {channels}; {other_sizes}
* What the images did not show, the network has not learned; whatever bias they have, it may have too.
* A low reconstruction loss does not rank networks: compare them on your task.

## Citation

{paper}
'''
