"""A fine-tuning run of any kind: train, average the weights, measure, keep the last state and the best weights."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timm.utils import ModelEmaV3

from common.networks.load import load_strictly
from common.reliability.checkpoint import plain_state, save
from common.training.compilation import uncompiled
from common.training.layer_decay import default_decay, layers_of
from common.training.optim import weights_size
from common.training.run import Run
from common.training.schedule import Cosine
from common.training.trainer import Trainer


class Average(ModelEmaV3):
    """timm's exponential moving average (EMA) of the weights; a step that changed nothing leaves it as it was.

    share: of the new weights in an update, 1 - decay; `set_decay` makes it a tensor on the device, which a CUDA
    graph reads at each step.
    """

    def __init__(self, model, decay):
        super().__init__(model, decay=decay)
        self.share = 1 - decay

    def set_decay(self, decay):
        """Set the decay of the next update. The host does not wait for that."""
        device = next(self.module.parameters()).device
        share = torch.tensor(1 - decay)
        if not torch.is_tensor(self.share):
            self.share = torch.empty_like(share, device=device)
        self.share.copy_(share.pin_memory() if device.type == 'cuda' else share, non_blocking=True)

    @torch.no_grad()
    def update(self, model, finite):
        """finite: 0-dim tensor on the device, 1 or 0."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values()))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(steps, self.share * finite)
        torch._foreach_add_(averages, steps)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)  # a count of BatchNorm's, which such a step does not change either


@dataclass(frozen=True)
class FineTuningRun(Run):
    """A Run with a constant weight decay, whose files are <model>_<word>_last.pth, _best.pth and _best_ema.pth.

    A subclass sets `word`, and `learning_rate_ends`: the learning rate at the first and at the last step, as shares of
    the peak.
    """

    @classmethod
    def checkpoint_of(cls, options):
        """The path of the newest checkpoint of a run with these options."""
        return Path(options.folder) / f'{options.model}_{cls.word}_last.pth'

    @property
    def checkpoint(self):
        return self.checkpoint_of(self.options)

    def file(self, which):
        return self.folder / f'{self.options.model}_{self.word}_{which}.pth'

    @property
    def curve(self):
        """The curve of the learning rate (common/training/schedule.py)."""
        return Cosine(*self.learning_rate_ends)

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        share, floor = self.along(self.curve, step)
        return floor + self.options.peak_lr * share, self.options.weight_decay

    def ema_decay(self, step):
        """The decay of the average of the weights at a step."""
        return self.options.ema


class FineTuning(Trainer):
    """Trains a network from given weights, and keeps the weights of the epoch that measures best.

    run: FineTuningRun. options besides those of every run: `finetune_from`, `ema` (decay of the average; 0 for
    none), `layer_decay`, `val_every`.

    A subclass defines besides `cnn`, `measure`, `headline`, `result`, and `best_by`, the metric by which the best
    epoch is chosen; the larger, the better. `best` and `last` are the metrics of the best epochs,
    {'model': {...}, 'ema': {...}}, and of the last one.
    """
    best_by = None
    best_called = None  # what `best_by` is called in a sentence
    value_suffix = ''  # after its value, such as ' %'

    @property
    def cnn(self):
        """The network that weights are given for; a part of the whole one."""
        raise NotImplementedError

    def measure(self, average):
        """{name: number or None} on the validation images, of the network, or of the average of
        `trained_part` if given.
        """
        raise NotImplementedError

    def counting(self, average):
        """The context in which `measure` counts the validation images for the run's line; yields a Count."""
        of_what = '' if average is None else ' (EMA)'
        return self.log.line.counting(f'validation images{of_what}', len(self.val_images))

    def divided(self):
        """Where the validation images come from, in words, if they are held out of the training images; else ''."""
        fraction = self.options.val_fraction
        return '' if fraction is None else f' (held out of the same, --val_fraction={fraction:g})'

    def headline(self):
        """The first line of what a finished run says."""
        raise NotImplementedError

    def result(self, suffix):
        """The metrics of the last epoch, for a person. suffix: '', or '_ema' for those of the average."""
        raise NotImplementedError

    @property
    def layer_decay(self):
        """A layer's learning rate as a share of the next one's."""
        given = self.options.layer_decay
        return default_decay(layers_of(self.cnn)[1]) if given is None else given

    def place_network(self):
        super().place_network()
        self.best = self.saved['best'] if self.saved else {}
        self.last = {}
        self.average = Average(self.trained_part(), decay=self.options.ema) if self.options.ema else None
        if self.average and self.saved:
            load_strictly(self.average.module, self.saved.pop('ema') or {})

    def checkpoint_size(self):
        return super().checkpoint_size() + (weights_size(self.network) if self.average else 0)

    def checkpoint_content(self):
        average = plain_state(self.average.module) if self.average else None
        return {'model': plain_state(self.trained_part()), 'ema': average, 'best': dict(self.best)}

    def release(self):
        super().release()
        self.average = None

    def before_step(self, step):
        super().before_step(step)
        if self.average:
            self.average.set_decay(self.run.ema_decay(step))

    def after_step(self, finite):
        if self.average:
            self.average.update(self.trained_part(), finite)

    def is_measured_after(self, epoch):
        """Whether the validation images are looked at after an epoch that is not the last one."""
        return epoch % self.options.val_every == 0

    def evaluate_epoch(self, epoch, is_last):
        metrics, found_by = {}, {}
        if is_last or self.is_measured_after(epoch):
            modules = {'model': None} | ({'ema': self.average.module} if self.average else {})
            for which, module in modules.items():
                with uncompiled():
                    found = self.measure(module)
                if found is None or self.session.asked_to_stop():
                    return None
                suffix = '' if which == 'model' else '_ema'
                metrics |= {f'{name}{suffix}': value for name, value in found.items()}
                found_by[which] = found[self.best_by]
                self.keep_if_best(which, epoch, found, module)
        self.last.update(metrics)
        return None if self.session.asked_to_stop() else (metrics, self.told(found_by))

    def told(self, values):
        """'top-1 71.20 % (EMA 70.30 %)', for a person; '' without values.

        values: those of `best_by`, {'model': number, 'ema': number}. None where the validation images have
        nothing to measure it by.
        """
        if not values:
            return ''
        ema = f' (EMA {self.with_suffix(values["ema"])})' if values.get('ema') is not None else ''
        return f'{self.best_called} {self.with_suffix(values["model"])}{ema}'

    def with_suffix(self, value):
        """A value of `best_by`, for a person."""
        return 'not measured' if value is None else f'{value:.2f}{self.value_suffix}'

    def keep_if_best(self, which, epoch, metrics, module):
        """Write the weights, or their average, if no epoch before was as good. module: of the average, else None."""
        value = metrics[self.best_by] or 0.0
        if which in self.best and value <= self.best[which][self.best_by]:
            return
        unit = self.run.unit
        self.best[which] = {unit.name: unit.number(epoch), **metrics, self.best_by: value}
        if self.ranks.is_main:
            state = {'model': plain_state(module or self.trained_part()), 'config': self.options.as_dict(),
                     **self.best[which], **self.facts()}
            path = self.run.file('best' if which == 'model' else 'best_ema')
            self.session.put(path, partial(save, path, state))

    def warnings(self):
        yield from super().warnings()
        given, saved = self.options.finetune_from, self.saved
        if saved and given and given != saved['config']['finetune_from']:
            yield f'--finetune_from={given} is not used: the run goes on from {saved["path"]}'

    def summary(self):
        """The metrics of the last and of the best epochs."""
        lines = [self.headline()]
        for which, suffix, what in (('model', '', 'the weights'), ('ema', '_ema', 'their average (EMA)')):
            if which in self.best:
                best = self.best[which]
                is_measured = self.last[f'{self.best_by}{suffix}'] is not None
                value, unit = self.with_suffix(best[self.best_by]), self.run.unit
                by_epoch = f'; best {self.best_called} {value} after {unit.name} {best[unit.name]:,}'
                lines.append(f'  {what}: {self.result(suffix)}{by_epoch if is_measured else ""}')
        lines.append(f'The best {self.run.unit.name} was chosen on these same images, so it is no test result: report the '
                     'last.')
        return '\n'.join(lines)
