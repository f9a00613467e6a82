"""Settings that follow from the number of images and the device, where a user did not give them.

A program has two recipes. `paper` is the setting of the paper, made for ImageNet and many GPUs. `auto` is a
rule for whatever that setting cannot work on: few images, or a CPU. Each program has its own rule (its
recipe.py); the parts that they share are here. A program may have more recipes, each by a name of its own
(`recipe_option` in common/config.py). Only options that are None, not given, are chosen.

What was chosen stands in the checkpoints, and a run that goes on takes it from there, on any device.
"""
import dataclasses
import os

import torch

from common.reliability.checkpoint import earlier

IMAGENET = 1_281_167  # training images
STEPS_AN_EPOCH = 16  # of the batch that is chosen for few images
BATCH_ON_A_CPU = 32  # images a step, at most
STEPS_ON_A_CPU = 2000  # of a whole run


def batch_for(images, ranks, most, least=8):
    """The largest power of two, from `least` to `most`, with which an epoch has 16 steps or more.

    ranks: their number, of which the batch is a multiple; each rank has two images at least.
    """
    batch = least
    while batch * 2 <= most and batch * 2 * STEPS_AN_EPOCH <= images:
        batch *= 2
    return max(-(-batch // ranks), 2) * ranks if ranks > 1 else batch


def most_on(device, many):
    """The largest batch that is chosen on a device: `many` on a GPU, fewer on a CPU."""
    return many if device.type == 'cuda' else min(many, BATCH_ON_A_CPU)


def epochs_for(images, batch, steps, most):
    """The epochs, from 1 to `most`, that have so many steps in all."""
    per_epoch = -(-images // batch)
    return max(1, min(most, round(steps / per_epoch)))


def rounded(number):
    """Two significant digits, so that a person can read and repeat a number that was chosen."""
    return float(f'{number:.2g}')


def starts_over(options):
    """Whether --fresh holds. A process that its launcher starts again goes on with what it began."""
    counts = (os.environ.get(name) for name in ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT'))
    return options.fresh and not any(int(count or 0) for count in counts)


def saved_options(options, checkpoint, ranks):
    """The options, as a dictionary, of the run that goes on; None if one begins. The same on all ranks.

    The arguments are those of `saved_entries`.
    """
    return saved_entries(options, checkpoint, ranks, ('config',)).get('config')


def saved_entries(options, checkpoint, ranks, names):
    """{name: value} of entries without tensors of the checkpoint that a run goes on from; empty if a run begins. The same
    on all ranks.

    They are those of the checkpoint that `load_run` will take: the newest one in the run folder that can be read,
    or that of --resume, whichever is of the later step. The name 'path' stands for that of its file.

    checkpoint: path of the newest checkpoint in the run folder. It is read without its tensors, and without a
    look at its checksums: that is done when the run loads it.
    """
    found = []
    if ranks.is_main and not starts_over(options):
        past = earlier(checkpoint)
        own = [checkpoint, *(past[step] for step in sorted(past, reverse=True))]
        found = [next((read for read in map(step_with_path, own) if read), None),
                 options.resume and step_with_path(options.resume)]
    _, content = max(filter(None, found), key=lambda read: read[0], default=(0, {}))
    return ranks.broadcast_object({name: content.get(name) for name in names if name in content})


def step_with_path(path):
    """What `step_and_content` gives, with the entry 'path'."""
    read = step_and_content(path)
    return read and (read[0], {**read[1], 'path': str(path)})


def step_and_content(path):
    """(step, content) of a checkpoint; None if it is none or cannot be read."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # A damaged file can make torch raise anything. What reads all of it says what is wrong.
        return None
    if not isinstance(content, dict) or not isinstance(content.get('config'), dict):
        return None
    return content.get('step', 0), content


def filled(options, values):
    """The options, with those that are None replaced by the values of a dictionary."""
    missing = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **missing)


class Recipe:
    """The recipes of a program. Its options are RunOptions, or of a class derived from them.

    chosen: names of the options that are chosen. before: {name: value} of those that runs were saved without,
    when there was no choice. words: {name of an option: text with {} for its value}, for a person.
    fewest_images, most_images: between which the paper's recipe is the default on GPUs.
    """
    chosen = ('recipe', 'batch_size', 'epochs', 'base_lr', 'lr', 'accum')
    before = {}
    words = {'batch_size': 'batches of {:,}', 'epochs': '{:,} epochs', 'lr': 'a peak learning rate of {:g}'}
    fewest_images = 0
    most_images = float('inf')
    least_batch = 8  # of the rule

    def paper(self, options):
        """{name: value} of the paper's setting, or of that which options.recipe names."""
        raise NotImplementedError

    def to_the_letter(self, name, fits):
        """Whether a recipe takes the values of `paper`; else the rule chooses.

        name: of the recipe, which need not be paper or auto. fits: whether the paper's is the default for these
        images and this device.
        """
        return name != 'auto'

    def most_batch(self, options, published, device):
        """The largest batch that the rule chooses. published: what `paper` gives for the options."""
        return most_on(device, published['batch_size'])

    def length(self, options, published, on_gpus):
        """(steps of a run, epochs at most) that the rule aims at, from the batch in the options."""
        raise NotImplementedError

    def duration(self, options, published, images, on_gpus):
        """{name: value} of how long a run of the rule is, from the batch in the options."""
        return {'epochs': epochs_for(images, options.batch_size, *self.length(options, published, on_gpus))}

    def rate(self, options, published, images):
        """The peak learning rate of the rule, from the optimiser, the batch and the length in the options."""
        raise NotImplementedError

    def rest(self, options, published, images):
        """{name: value} of what the rule chooses last, from all else in the options."""
        return {}

    def completed(self, options, ranks):
        """The options with what follows from all others and the ranks, whichever the recipe."""
        return options

    def automatic(self, options, images, ranks):
        """The options with all that the rule chooses. images: the number of training images."""
        published = self.paper(options)
        batch = batch_for(images, ranks.size, self.most_batch(options, published, ranks.device), self.least_batch)
        options = filled(options, {'batch_size': batch})
        options = filled(options, self.duration(options, published, images, ranks.device.type == 'cuda'))
        if options.base_lr is None:
            options = filled(options, {'lr': rounded(self.rate(options, published, images))})
        return filled(options, {'base_lr': published['base_lr'], **self.rest(options, published, images)})

    def settled(self, options, images, ranks, saved=None):
        """The options with all values that were not given, and a sentence on them.

        saved: the options of the run that goes on, as a dictionary.
        """
        if saved:
            name = f"{saved['recipe']}, " if saved.get('recipe') else ''
            return self.going_on(options, saved), f'{name}as the run began'
        on_gpus = ranks.device.type == 'cuda'
        fits = on_gpus and self.fewest_images <= images <= self.most_images
        name = options.recipe or ('paper' if fits else 'auto')
        begun = filled(options, {'recipe': name, 'accum': options.parts})
        to_the_letter = self.to_the_letter(name, fits)
        done = filled(begun, self.paper(begun)) if to_the_letter else self.automatic(begun, images, ranks)
        done = self.completed(done, ranks)
        what = self.in_words(options, done)
        if to_the_letter:
            return done, f'{name}: {what}'
        why = '' if fits else f" (the paper's is for {self.published_images()} images on GPUs)"
        return done, f"{name}, for {images:,} images on {'GPUs' if on_gpus else 'a CPU'}: {what}{why}"

    def published_images(self):
        """For how many images the paper's recipe is the default, in words."""
        most = '' if self.most_images == float('inf') else f' to {self.most_images:,}'
        return f'{self.fewest_images:,}{most or " or more"}'

    def going_on(self, options, saved):
        """The options of a run that goes on: what is not given now is as it was saved."""
        values = {**self.before, **saved}
        if options.base_lr is not None:
            values['lr'] = None  # A base_lr that is given now stands against the peak that was chosen then.
        return filled(options, {name: values[name] for name in self.chosen if name in values})

    def in_words(self, given, options):
        """What was chosen: 'batches of 32, 7 epochs'. given, options: before and after."""
        chosen = [text.format(getattr(options, name)) for name, text in self.words.items()
                  if getattr(given, name) is None and getattr(options, name) is not None]
        return ', '.join(chosen) or 'all was given'
