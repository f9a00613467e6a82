"""The interactions of cells in one classifier, image by image, kept in a file as they are measured."""
import time
from pathlib import Path

import torch

from analysis.kept import kept_file, read_kept, write_json
from analysis.networks import class_numbers, open_classifier
from analysis.orders import REWARDS, draw_contexts, draw_pairs, masked, pair_interactions, strengths
from common.networks.convolutions import safe_convolutions
from common.training.device import to_device
from common.words import counted, printable

SAVE_EVERY = 3.0  # seconds between two writes of what is measured so far


class Classified:
    """A classifier, and the interactions of pairs of cells of each image that are known so far.

    Args:
        one: Asked (analysis/networks.py).
        images: that were drawn. folders: that of each of them, which is its class. classes: the names of all
            folders.
        settings: Settings (analysis/images.py). game: Game (analysis/game.py).
        out: the folder for results.
        say: function of a text, for what is to be known.

    Raises ValueError if the network is no classifier, or if its classes are not those of the folders.
    """

    def __init__(self, one, images, folders, classes, settings, game, out, say):
        self.one = one
        self.images = images
        self.settings = settings
        self.game = game
        opened = open_classifier(one, settings)
        for note in opened.notes:
            say(printable(note))
        self.module = opened.module
        number_of = class_numbers(opened, one, classes)
        self.labels = [number_of[folder] for folder in folders]
        self.unread = set()  # places of images that cannot be read
        about = {'analysis': 'interaction', 'weights': opened.digest, 'model': one.model,
                 'grid': list(game.grid), 'pairs': game.pairs, 'contexts': game.contexts,
                 'orders': game.orders, 'reward': game.reward, 'seed': settings.seed,
                 'preparation': settings.preparation}
        self.file = kept_file(out, about)
        self.kept = read_kept(self.file, {'images': {}})
        done = len(images) - len(self.left)
        if done:
            say(f'{one.legend}: {done} of {counted(len(images), "image")} were done before')

    def name(self, place):
        """Return the path of an image below the folder of all; what is drawn for it depends on that."""
        return Path(self.images.name(place)).relative_to(self.images.root).as_posix()

    def key(self, place):
        """Return by what the interactions of an image are kept."""
        return f'{self.name(place)}, {self.images.size(place)} bytes, class {self.labels[place]}'

    def orders_left(self, place):
        """Return the orders that are not measured for an image."""
        return self.game.orders[len(self.kept['images'].get(self.key(place), ())):]

    @property
    def left(self):
        """{place of an image: how many masked images are to be seen for it}, of those that are not done."""
        work = {place: self.game.num_masked(self.orders_left(place)) for place in range(len(self.images))}
        return {place: number for place, number in work.items() if number and place not in self.unread}

    def image(self, place, device, warn):
        """Return an image (C, H, W) on the device; None, with a warning, if it cannot be read."""
        image, _, failures = self.settings.augmented(self.images)[0, place]
        for _, error in failures:
            warn(printable(f'unreadable image {self.images.name(place)} ({error}): it is left out'))
        return image if image is None else to_device(image, device)

    def run(self, device, line):
        """Measure what is left. line: a LiveLine."""
        left = self.left
        if not left:
            return
        self.module.to(device, memory_format=torch.channels_last)
        title = f'masked images, {printable(self.one.legend)}'
        with line.counting(title, sum(left.values())) as count:
            for place, number in left.items():
                image = self.image(place, device, line.say)
                if image is None:
                    self.unread.add(place)
                    count.add(number)
                else:
                    self.look_at(image, place, count)

    def look_at(self, image, place, count):
        """Measure the orders of an image that are left, and keep them. count: a Count of masked images."""
        found = self.kept['images'].setdefault(self.key(place), [])
        saved = time.monotonic()
        for order in self.orders_left(place):
            found.append(self.of_order(image, place, order, count).tolist())
            if time.monotonic() - saved > SAVE_EVERY:
                write_json(self.file, self.kept)
                saved = time.monotonic()
        write_json(self.file, self.kept)

    def of_order(self, image, place, order, count=None):
        """Return the interaction of each pair of an image in contexts of `order` cells, (P,)."""
        game, seed, name = self.game, self.settings.seed, self.name(place)
        pairs = draw_pairs(game.grid, game.pairs, seed, name)
        contexts = draw_contexts(game.players, pairs, order, game.contexts, seed, name)

        def value(visible):
            return self.value(image, self.labels[place], visible, count)

        found = pair_interactions(value, game.players, pairs, contexts)
        if not found.isfinite().all():
            raise ValueError(f'{self.one.legend} says values of {self.images.name(place)} that are not '
                             'finite: these weights are broken, or the images are not normalised as in '
                             'training')
        return found

    @torch.no_grad()
    def value(self, image, label, visible, count=None):
        """Return v of the cells that are left in an image, (N,) float64 on the CPU.

        label: the number of its class. visible: bool (N, players).
        """
        values = []
        for part in visible.split(self.settings.batch_size):
            x = to_device(masked(image, part.to(image.device), self.game.grid), image.device)
            with safe_convolutions(image.device):
                logits = self.module(x).double()
            values.append(REWARDS[self.game.reward](logits, label).cpu())
            if count:
                count.add(len(part))
        return torch.cat(values)

    def seconds_left(self, device):
        """Return how long the rest will take, as far as a first batch of masked images tells."""
        left = self.left
        for place in left:
            image = self.image(place, device, warn=lambda text: None)  # run() warns of it
            if image is not None:
                break
        else:
            return 0.0
        self.module.to(device, memory_format=torch.channels_last)
        visible = torch.rand(self.settings.batch_size, self.game.players) < 0.5
        self.value(image, self.labels[place], visible)  # the first run of a network takes longer
        began = time.perf_counter()
        self.value(image, self.labels[place], visible)
        seconds = (time.perf_counter() - began) / len(visible) * sum(left.values())
        self.module.cpu()  # Not all networks have to fit on a GPU together.
        return seconds

    def result(self):
        """Return what interaction.json says of this network. Raises ValueError if no image can be read."""
        places = [place for place in range(len(self.images)) if not self.orders_left(place)]
        if not places:
            raise ValueError('none of the images can be read')
        images = [{'name': self.name(place), 'class': self.labels[place],
                   'interactions': self.kept['images'][self.key(place)]} for place in places]
        strength, error = strengths([image['interactions'] for image in images])
        return {'legend': self.one.legend, 'model': self.one.model, 'weights': self.one.weights,
                'strength': strength, 'standard_error': error, 'images': images}
