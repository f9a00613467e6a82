"""What is measured of the feature maps of one network: sums over images, kept in a file as they grow."""
import time

import torch

from analysis.blocks import block_names, each_map
from analysis.kept import kept_file, read_kept, write_json
from analysis.networks import open_network
from analysis.spectra import frequencies, log_amplitudes, relative, spatial_variances
from common.distributed import Ranks
from common.images.datasets import fingerprint
from common.images.loading import each_once, naming_the_file
from common.training.device import to_device
from common.training.run import loading_processes
from common.words import counted, first_of, printable

SAVE_EVERY = 3.0  # seconds between two writes of what is measured so far
TRIED = 8  # images by which the time is estimated
EMPTY = {'looked_at': 0, 'images': 0, 'blocks': [], 'others': []}  # what is kept before the first image


class Measured:
    """A network, and the sums of what is measured at its blocks.

    Args:
        one: Asked (analysis/networks.py).
        images: that were drawn.
        settings: Settings (analysis/images.py).
        out: the folder for results.
        pattern: of the names of blocks; None for those that `block_names` finds.
        say: function of a text, for what is to be known.

    Raises ValueError.
    """

    def __init__(self, one, images, settings, out, pattern, say):
        self.one = one
        self.images = images
        self.settings = settings
        opened = open_network(one, settings)
        for note in opened.notes:
            say(printable(note))
        self.cnn = opened.module
        self.names = block_names(self.cnn, pattern)
        about = {'analysis': 'fourier', 'weights': opened.digest, 'model': one.model, 'blocks': self.names,
                 'images': fingerprint(images), 'preparation': settings.preparation}
        self.file = kept_file(out, about)
        self.kept = read_kept(self.file, EMPTY)
        found = 'the levels of its pyramid'
        if self.names:
            found = f'{counted(len(self.names), "block")} ({first_of(self.names, 3)})'
        done = self.kept['looked_at']
        before = f'; {done} of {counted(len(images), "image")} were looked at before' if done else ''
        say(f'{one.legend}: {found}{before}')

    @property
    def left(self):
        """How many images are still to be looked at."""
        return len(self.images) - self.kept['looked_at']

    def run(self, device, line):
        """Look at the images that are left. line: a LiveLine."""
        if not self.left:
            return
        cnn = self.cnn.to(device, memory_format=torch.channels_last)
        ranks = Ranks(0, 1, device)
        done = self.kept['looked_at']
        rest = self.images.subset(slice(done, None))
        augmented = self.settings.augmented(rest)
        workers = loading_processes(self.settings, ranks)
        saved = time.monotonic()
        title = f'maps of {printable(self.one.legend)}'
        with naming_the_file(augmented), line.counting(title, len(rest)) as count:
            def go_on():
                nonlocal saved
                self.kept['looked_at'] = done + count.done
                if time.monotonic() - saved > SAVE_EVERY:
                    write_json(self.file, self.kept)
                    saved = time.monotonic()
                return True

            for x, _ in each_once(augmented, self.settings.batch_size, workers, ranks, line.say, count=count,
                                  go_on=go_on):
                self.add(cnn, to_device(x, device))
        if not self.kept['images']:
            raise ValueError('none of the images can be read')
        self.cnn.cpu()
        write_json(self.file, self.kept)
        if self.kept['others']:
            line.say(f'{self.one.legend}: {first_of(self.kept["others"])} give no map of the image with more '
                     'than one position, and are left out')

    def add(self, cnn, images):
        """Add what is measured of a batch to the sums."""
        found, others = measure(cnn, images, self.names)
        kept = self.kept
        if not kept['blocks']:
            kept['blocks'] = found
            kept['others'] = others
        else:
            for sums, block in zip(kept['blocks'], found, strict=True):
                pairs = zip(sums['amplitudes'], block['amplitudes'], strict=True)
                sums['amplitudes'] = [total + value for total, value in pairs]
                sums['variance'] += block['variance']
        kept['images'] += len(images)

    def seconds_left(self, device):
        """Return how long the rest will take, as far as a first batch of TRIED images tells."""
        if not self.left:
            return 0.0
        augmented = self.settings.augmented(self.images)
        number = min(TRIED, len(self.images))
        began = time.perf_counter()
        read = [augmented[0, place][0] for place in range(number)]
        loading = (time.perf_counter() - began) / number
        read = [image for image in read if image is not None]
        if not read:
            return 0.0
        x = to_device(torch.stack(read), device)
        cnn = self.cnn.to(device, memory_format=torch.channels_last)
        measure(cnn, x[:1], self.names)  # the first run of a network takes longer
        began = time.perf_counter()
        measure(cnn, x, self.names)
        seconds = (loading + (time.perf_counter() - began) / len(x)) * self.left
        self.cnn.cpu()  # Not all networks have to fit on a GPU together.
        return seconds

    def result(self):
        """Return what fourier.json says of this network: of each block the means over images."""
        number = self.kept['images']
        blocks = []
        for place, sums in enumerate(self.kept['blocks']):
            amplitudes = [total / number for total in sums['amplitudes']]
            blocks.append({'name': sums['name'], 'kind': sums['kind'], 'channels': sums['channels'],
                           'grid': sums['grid'], 'depth': place / max(1, len(self.kept['blocks']) - 1),
                           'frequency': frequencies(sums['grid'], len(amplitudes)),
                           'relative_log_amplitude': relative(amplitudes),
                           'variance': sums['variance'] / number})
        return {'legend': self.one.legend, 'model': self.one.model, 'weights': self.one.weights,
                'images': number, 'no_maps': self.kept['others'], 'blocks': blocks}


def measure(cnn, images, names):
    """Measure the maps of a batch at each place of a network. names: of its blocks.

    Returns (a list of {name, kind, channels, grid, amplitudes, variance}, where the last two are sums over
    the batch; the names of blocks that give no map). Raises ValueError for values that are not finite.
    """
    found = []

    def take(place, maps):
        amplitudes = log_amplitudes(maps).double().sum(0).tolist()
        variance = spatial_variances(maps).double().sum().item()
        if not torch.tensor([variance, *amplitudes]).isfinite().all():
            raise ValueError(f'the map of {place} holds values that are not finite: these weights are '
                             'broken, or the images are not normalised as in training')
        found.append({'name': str(place), 'kind': place.kind, 'channels': maps.shape[1],
                      'grid': list(maps.shape[2:]), 'amplitudes': amplitudes, 'variance': variance})

    others = each_map(cnn, images, names, take)
    return found, others
