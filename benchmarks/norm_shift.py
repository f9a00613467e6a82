"""How far BatchNorm's running statistics are, after pretraining, from those of whole images.

    python -m benchmarks.norm_shift --data_path=DIR --model=small_resnet --input_size=80 --weights=FILE
                                    [--images=1024 --batch_size=64] [--estimated=FILE] [--json=FILE]

Running statistics are of what a network saw in training: of visible cells alone in sparse pretraining
(pretrain/encoder.py), of images with zeroed pixels in its ablation (benchmarks/ablations.py). In evaluation
the network sees whole images, and normalises them by these statistics.

A BatchNorm has the running mean m and variance v of each channel. On whole images its inputs have mean M and
variance V. Deviations are s = sqrt(v + eps) and S = sqrt(V + eps), by which it divides. Of each BatchNorm:

    shift    mean over channels of |m - M| / S
    ratio    median over channels of s / S
    |log2|   mean over channels of |log2(s / S)|; 1 is a factor of 2

M and V are taken in two ways:

    evaluation   All norms use their running statistics, as for k-NN and a linear probe. Those are the inputs
                 that a norm has there, so the shift of one norm changes the inputs of those after it.
    by layer     The norms in front use the statistics of each batch, as in training. So the figures hold the
                 shift of this layer alone.

The images are drawn by the seed from the training images, and cropped as k-NN and the linear probe do it.
--estimated writes the same weights with the running statistics of these images (those `by layer`, averaged
over batches), for --weights of downstream_imagenet.knn, linear and main.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from analysis.kept import write_json
from common.cli import errors_in_one_sentence, option, parse, reader_may_leave
from common.config import require
from common.distributed import this_process
from common.feature_maps import pooled_features
from common.images.augmented import Augmented
from common.images.datasets import Share
from common.images.loading import each_once, naming_the_file
from common.live_line import LiveLine
from common.networks.users import register
from common.reliability.checkpoint import plain_state, save
from common.seeds import seed_for
from common.training.device import to_device
from common.training.run import autocast, loading_processes
from downstream_imagenet import features
from downstream_imagenet.data import evaluation_transform
from downstream_imagenet.labelled import labelled_images

# {key in JSON: title in the table}
FIGURES = {'mean_shift': 'shift', 'std_ratio': 'ratio', 'log2_std_ratio': '|log2|'}


@dataclass(frozen=True)
class Options(features.Options):
    """What a user decides. Raises ValueError."""

    images: int = option(1024, 'training images that are measured; rounded down to whole batches', 'data')
    estimated: str = option(None, 'write the weights with running statistics of these images to this file',
                            'weights', parse=str)
    json: str = option(None, 'write the figures to this file', 'log', parse=str)

    def __post_init__(self):
        super().__post_init__()
        require(self.images >= 2, f'images must be 2 or more, not {self.images}')
        require(self.batch_size >= 2,
                f'batch_size must be 2 or more, not {self.batch_size}: a single image may give a BatchNorm a '
                'single value, which has no deviation')
        for name in ('estimated', 'json'):
            path = getattr(self, name)
            require(path is None or Path(path).parent.is_dir() and not Path(path).is_dir(),
                    f'cannot write --{name}={path}: give a file in a folder that is there')
        require(self.estimated is None or self.weights is None or not self.would_lose_weights,
                f'--estimated={self.estimated} is the file of --weights, which would be lost: name another')

    @property
    def would_lose_weights(self):
        """Whether --estimated is the file of --weights, which may be given as FILE or as FILE:KEY."""
        sources = self.weights, self.weights.rpartition(':')[0]
        return Path(self.estimated).resolve() in [Path(source).resolve() for source in sources]


class Pooled(nn.Module):
    """A network up to the features that probes read: images (B, C, H, W) -> (B, D). It is in evaluation mode.

    train() changes the mode of its BatchNorms alone: dropout and stochastic depth stay off.
    """

    def __init__(self, cnn, precision):
        super().__init__()
        self.cnn = cnn
        self.precision = precision
        self.train(False)

    def forward(self, images):
        with self.precision():
            return pooled_features(self.cnn, images)

    def train(self, mode=True):
        super().train(False)
        for norm in norms_of(self.cnn).values():
            norm.training = mode
        return self


def norms_of(cnn):
    """{name: module} of the BatchNorms that keep running statistics."""
    return {name: module for name, module in cnn.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None}


class Moments:
    """Mean and variance of each channel, (C,) float64, of all inputs (B, C, ...) that are added."""

    def __init__(self):
        self.count = 0

    def add(self, x):
        """Merge the moments of x into those so far (Chan, Golub and LeVeque, 1983)."""
        dims = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = (each.double() for each in torch.var_mean(x.float(), dims, correction=0))
        if not self.count:
            self.mean, self.var = torch.zeros_like(mean), torch.zeros_like(var)
        count = x.numel() // x.shape[1]
        share = count / (self.count + count)
        distance = mean - self.mean
        self.var += share * (var - self.var) + share * (1 - share) * distance.square()
        self.mean += share * distance
        self.count += count


@torch.no_grad()
def input_moments(model, batches):
    """({name: Moments}, number of images): of the inputs that BatchNorms have in evaluation mode.

    model: a Pooled. Of its BatchNorms those that run are returned. batches: images (B, C, H, W).
    """
    moments = {name: Moments() for name in norms_of(model.cnn)}

    def look(name, norm, inputs):
        moments[name].add(inputs[0])

    handles = [norm.register_forward_pre_hook(partial(look, name))
               for name, norm in norms_of(model.cnn).items()]
    number = 0
    try:
        for images in batches:
            model(images)
            number += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: each for name, each in moments.items() if each.count}, number


def estimate(model, batches, names):
    """Give some BatchNorms the statistics of these images, averaged over batches; change nothing else.

    model: a Pooled. batches: images (B, C, H, W), as many in each. names: of the BatchNorms in model.cnn.
    """
    others = [norm for name, norm in norms_of(model.cnn).items() if name not in names]
    before = [plain_state(norm) for norm in others]
    update_bn(batches, model)
    for norm, state in zip(others, before):
        norm.load_state_dict(state)


def figures(mean, var, whole_mean, whole_var, eps):
    """The figures of a BatchNorm, {key of FIGURES: number}.

    mean, var, whole_mean, whole_var: (C,), which are m, v, M and V in the module's docstring.
    """
    std, whole_std = (var.double() + eps).sqrt(), (whole_var.double() + eps).sqrt()
    ratio = std / whole_std
    shift = (mean.double() - whole_mean.double()).abs() / whole_std
    values = shift.mean(), ratio.quantile(0.5), ratio.log2().abs().mean()
    return {key: value.item() for key, value in zip(FIGURES, values)}


def measure(cnn, precision, batches):
    """The results, as JSON holds them. Afterwards the network has the statistics of the images.

    precision: makes the context of a forward pass. batches: called twice for an iterator of images
    (B, C, H, W). Raises ValueError if none of the images can be read.
    """
    model = Pooled(cnn, precision)
    moments, number = input_moments(model, batches())
    if not number:
        raise ValueError('none of the images can be read')
    norms = {name: norm for name, norm in norms_of(cnn).items() if name in moments}
    left = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    estimate(model, batches(), norms)
    layers = []
    for name, norm in norms.items():
        layers.append({
            'name': name, 'channels': norm.num_features,
            **figures(*left[name], moments[name].mean, moments[name].var, norm.eps),
            'by_layer': figures(*left[name], norm.running_mean, norm.running_var, norm.eps)})
    mean = {key: statistics.mean(layer[key] for layer in layers) for key in FIGURES}
    mean['by_layer'] = {key: statistics.mean(layer['by_layer'][key] for layer in layers) for key in FIGURES}
    return {'images': number, 'mean': mean, 'layers': layers}


def table(results):
    """The results as lines for a person."""
    layers = [*results['layers'], {'name': 'mean over layers', 'channels': '', **results['mean']}]
    width = max(len(layer['name']) for layer in layers)
    titles = ''.join(f'{title:>8}' for title in FIGURES.values())
    lines = [f'{"":{width}}  {"":>8}  {"evaluation":^24}  {"by layer":^24}'.rstrip(),
             f'{"layer":{width}}  {"channels":>8}  {titles}  {titles}']
    for layer in layers:
        cells = [''.join(f'{part[key]:8.3f}' for key in FIGURES) for part in (layer, layer['by_layer'])]
        lines.append(f'{layer["name"]:{width}}  {layer["channels"]:>8}  {"  ".join(cells)}')
    return lines


def sample(options):
    """The training images that are measured, an Augmented of whole batches. Raises ValueError."""
    images = labelled_images(options)[0]
    number = min(options.images, len(images))
    # Each batch counts as much as another in a cumulative average, so none is to be smaller.
    number = number // options.batch_size * options.batch_size or number
    generator = torch.Generator().manual_seed(seed_for('norm_shift', options.seed))
    # In the order of a folder a batch would hold one class, and have less variance than all images.
    order = torch.randperm(len(images), generator=generator)[:number].tolist()
    return Augmented(Share(images, order), evaluation_transform(options), options.normalisation,
                     labelled=True, stand_ins=False)


def norm_shift(options, say=print):
    """Measure, print the table and write the files of the options. Returns results. Raises ValueError."""
    register(options.register)
    cnn = features.network(options, say)
    if not norms_of(cnn):
        raise ValueError(f'{options.model} has no BatchNorm with running statistics: nothing to measure')
    images = sample(options)
    ranks = this_process()
    cnn = cnn.to(ranks.device, memory_format=torch.channels_last)
    workers = loading_processes(options, ranks)
    line = LiveLine(say)

    def batches(count):
        for x, _ in each_once(images, options.batch_size, workers, ranks, line.say, count=count):
            yield to_device(x, ranks.device)

    with naming_the_file(images), line.counting('statistics of BatchNorm', 2 * len(images)) as count:
        results = measure(cnn, partial(autocast, options, ranks), partial(batches, count))
    number = results['images']
    say(f'running statistics of {options.source} against those of {number:,} whole training images')
    for text in table(results):
        say(text)
    if options.estimated:
        save(options.estimated, plain_state(cnn))
    if options.json:
        about = {'model': options.model, 'weights': options.source, 'seed': options.seed}
        write_json(options.json, {**about, **results})
    return results


@reader_may_leave(ends=False)
def main(argv=None):
    options = parse(Options, 'benchmarks.norm_shift', __doc__.splitlines()[0], argv)
    with errors_in_one_sentence():
        norm_shift(options)


if __name__ == '__main__':
    main()
