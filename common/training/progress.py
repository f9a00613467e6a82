"""How a run tells what it does while it trains: the progress line, scalars, the time to go."""
import time

from common.training.energy import Meter
from common.training.log import clock, duration
from common.words import counted

SHOWN = 5  # names of images
WORTH_SAYING, TOO_LONG = 0.05, 0.2  # share of the time that is spent waiting for images
LEAST = 1.0  # seconds of an epoch that nobody need be warned of


class Progress:
    """Follows the losses of a run. `sums` (loss, gradient norm, steps) and `skipped` (steps that were not
    finite), of this epoch so far, are the part to save.

    batch_of(step) -> names of the images of a step, on all ranks together. metric: what the progress line
    says besides, from the last evaluation. bad: [(step, loss, gradient norm)] of the steps in a row, up to
    the last one, that were not finite.
    """
    remedy = 'more --workers'  # against waiting for images

    def __init__(self, run, log, saved, batch_of):
        self.run, self.log, self.batch_of = run, log, batch_of
        self.sums, self.skipped = (list(saved['sums']), saved.get('skipped', 0)) if saved else ([0.0, 0.0, 0], 0)
        self.seconds, self.timed = 0.0, 0  # spent in training steps, and how many: evaluation and saving do not count
        self.announced, self.metric, self.meter = False, '', Meter(run.ranks.device)
        self.bad, self.unsaid, self.told, self.latest = [], [], 0, None
        self.warned = False

    @property
    def step_time(self):
        return self.seconds / max(self.timed, 1)

    @property
    def is_lost(self):
        """Whether so many steps in a row were not finite that it makes no sense to go on."""
        return len(self.bad) >= self.run.options.max_skips

    def start_epoch(self):
        self.began = time.perf_counter()
        self.epoch_seconds = self.epoch_steps = self.epoch_waited = 0

    def add(self, step, loss, norm, finite):
        """What a step came to; in turn, and as soon as the device has told."""
        self.told += 1
        if finite:
            self.sums[0], self.sums[1], self.sums[2] = self.sums[0] + loss, self.sums[1] + norm, self.sums[2] + 1
            self.latest, self.bad = (step, loss, norm), []
        else:
            self.skipped += 1
            self.bad.append((step, loss, norm))
            self.unsaid.append((step, loss, norm))

    def story(self, bad):
        """What went wrong in steps that were not finite, for a person."""
        step, loss, norm = bad[-1]
        names, several = self.batch_of(step), len(bad) > 1
        steps = f'steps {bad[0][0]:,} to {step:,}, {len(bad)} of them, were' if several else f'step {step:,} was'
        return (f'{steps} not finite: {"in the last one " * several}the loss was {loss:.4g} and the gradient norm {norm:.4g} '
                f'at a learning rate of {self.run.schedule(step)[0]:.3g}, on {", ".join(names[:SHOWN])}'
                + (f' and {counted(len(names) - SHOWN, "more image")}' if len(names) > SHOWN else ''))

    def look(self, seconds, waited=0.0):
        """Tell of the steps since the last look, which took so many seconds; of these, images were waited for so many."""
        count, self.told = self.told, 0
        if self.unsaid and self.run.ranks.is_main:
            self.log.warn(f'{self.story(self.unsaid)}. Such a step changes nothing; {self.skipped} in this epoch so far')
            last = self.unsaid[-1][0]
            self.log.record({'skipped': [step for step, *_ in self.unsaid], 'step': last + 1, 'lr': self.run.schedule(last)[0],
                             'images': self.batch_of(last)[:SHOWN]})
        self.unsaid = []
        self.seconds, self.timed = self.seconds + seconds, self.timed + count
        self.epoch_seconds, self.epoch_steps = self.epoch_seconds + seconds, self.epoch_steps + count
        self.epoch_waited += waited
        if self.latest is None:
            return
        (step, loss, norm), self.latest = self.latest, None
        (lr, decay), left = self.run.schedule(step), (self.run.steps - 1 - step) * self.step_time
        rate, share = count * self.run.options.batch_size / seconds, min(waited / seconds, 1)
        self.log.scalars({'loss': loss, 'gradient_norm': norm, 'learning_rate': lr, 'weight_decay': decay,
                          'images_per_second': rate, 'data_wait': share}, step + 1)
        self.log.progress(f'epoch {step // self.run.per_epoch + 1}/{self.run.options.epochs}  step {step + 1}/'
                          f'{self.run.steps}  loss {loss:.4f}  {self.metric}lr {lr:.2e}  {rate:.1f} images/s  '
                          + (f'waits {100 * share:.0f} % for images  ' if share > WORTH_SAYING else '')
                          + f'{duration(left)} left')
        if not self.announced:
            self.announced = True
            took = f'The first step took {self.step_time:.2f} s' if self.timed == 1 else \
                f'The first {self.timed} steps took {self.step_time:.2f} s each'
            self.log.say(f'{took}: about {duration(left)} to go, until {clock(left)}.')

    def end_epoch(self, epoch, metrics, unreadable, said):
        """Write the line of an epoch (counted from 1) to the log and the terminal; called on all ranks.

        metrics: {name: value} for the log, None where not measured; said: the same for a person. unreadable:
        images so far.
        """
        step, (loss, norm, steps) = epoch * self.run.per_epoch, self.sums
        loss, norm = (loss / steps, norm / steps) if steps else (None, None)
        (lr, decay), left = self.run.schedule(step - 1), (self.run.steps - step) * self.step_time
        drawn, waited = zip(*self.run.ranks.gather([(self.meter.kwh(), self.epoch_waited)]))
        waited = max(waited)  # all ranks wait for the slowest
        share = round(min(waited / self.epoch_seconds, 1), 4) if self.epoch_steps else None
        rate = self.epoch_steps * self.run.options.batch_size / self.epoch_seconds if self.epoch_steps else None
        entry = {'epoch': epoch, 'step': step, 'loss': loss, **metrics, 'gradient_norm': norm, 'lr': lr, 'weight_decay': decay,
                 'skipped': self.skipped, 'unreadable': unreadable, 'images_per_second': rate, 'data_wait': share,
                 'seconds': time.perf_counter() - self.began, 'gpu_kwh': None if None in drawn else sum(drawn),
                 'remaining': duration(left), 'finish': clock(left)}
        self.sums, self.skipped = [0.0, 0.0, 0], 0
        self.log.record(entry)
        self.log.scalars({name: value for name, value in metrics.items() if value is not None}, step)
        self.metric = said or self.metric
        figures = 'no finite step' if loss is None else f'loss {loss:.4f}, {said.strip() + ", " if said else ""}lr {lr:.2e}, ' \
            f'gradient norm {norm:.3f}' + (f', {rate:.1f} images/s' if rate else '')
        self.log.say(f'epoch {epoch}/{self.run.options.epochs}: {figures}, {duration(left)} left'
                     + (f', waited {100 * share:.0f} % for images' if (share or 0) > WORTH_SAYING else '')
                     + (f', {counted(entry["skipped"], "step was", "steps were")} not finite' if entry['skipped'] else '')
                     + (f', {counted(unreadable, "unreadable image")} so far' if unreadable else ''))
        if (share or 0) > TOO_LONG and waited > LEAST and not self.warned and self.run.ranks.is_main:
            self.warned = True
            self.log.warn(f'{100 * share:.0f} % of the time of epoch {epoch} were spent waiting for images (--workers='
                          f'{self.run.workers}): training is faster with {self.remedy}')
