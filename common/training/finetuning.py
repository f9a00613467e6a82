"""A fine-tuning run of any kind: train, average the weights, measure, keep the last state and the best
weights.
"""
from functools import partial

import torch
from timm.utils import ModelEmaV3

from common.networks.load import load_strictly
from common.reliability.checkpoint import plain_state, save
from common.training.optim import weights_size
from common.training.trainer import Trainer


class Average(ModelEmaV3):
    """timm's exponential moving average (EMA) of the weights; a step that changed nothing leaves it as it
    was.
    """

    @torch.no_grad()
    def update(self, model, finite):
        """finite: 0-dim tensor on the device, 1 or 0."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values()))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(steps, (1 - self.decay) * finite)
        torch._foreach_add_(averages, steps)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)  # a count of BatchNorm's, which such a step does not change either


class FineTuning(Trainer):
    """Trains a network from given weights, and keeps the weights of the epoch that measures best.

    options besides those of every run: `finetune_from`, `ema` (decay of the average; 0 for none),
    `val_every`. The run has file(which) for the names of its files.

    A subclass defines besides `measure` and `best_by`, the metric by which the best epoch is chosen; the
    larger, the better. `best` and `last` are the metrics of the best epochs, {'model': {...}, 'ema': {...}},
    and of the last one.
    """
    best_by = None

    def measure(self, average):
        """{name: number or None} on the validation images, of the network, or of the average of
        `trained_part` if given.
        """
        raise NotImplementedError

    def place_network(self):
        super().place_network()
        self.best, self.last = (self.saved['best'] if self.saved else {}), {}
        self.average = Average(self.trained_part(), decay=self.options.ema) if self.options.ema else None
        if self.average and self.saved:
            load_strictly(self.average.module, self.saved.pop('ema') or {})

    def checkpoint_size(self):
        return super().checkpoint_size() + (weights_size(self.network) if self.average else 0)

    def checkpoint_content(self):
        return {'model': plain_state(self.trained_part()), 'ema': plain_state(self.average.module) if self.average else None,
                'best': dict(self.best)}

    def after_step(self, finite):
        if self.average:
            self.average.update(self.trained_part(), finite)

    def evaluate_epoch(self, epoch, is_last):
        metrics, text = {}, ''
        if is_last or epoch % self.options.val_every == 0:
            modules = {'model': None} | ({'ema': self.average.module} if self.average else {})
            for which, module in modules.items():
                found = self.measure(module)
                if self.session.asked_to_stop():
                    return None
                suffix = '' if which == 'model' else '_ema'
                metrics |= {f'{name}{suffix}': value for name, value in found.items()}
                text += f'{which} {found[self.best_by] or 0.0:.2f} %  '
                self.keep_if_best(which, epoch, found, module)
        self.last.update(metrics)
        return None if self.session.asked_to_stop() else (metrics, text)

    def keep_if_best(self, which, epoch, metrics, module):
        """Write the weights, or their average, if no epoch before was as good. module: of the average, else
        None.
        """
        value = metrics[self.best_by] or 0.0
        if which in self.best and value <= self.best[which][self.best_by]:
            return
        self.best[which] = {'epoch': epoch, **metrics, self.best_by: value}
        if self.ranks.is_main:
            state = {'model': plain_state(module or self.trained_part()), 'config': self.options.as_dict(),
                     **self.best[which], **self.facts()}
            path = self.run.file('best' if which == 'model' else 'best_ema')
            self.session.put(path, partial(save, path, state))
