"""How a run tells what it does while it trains: its line in the terminal, scalars, and the time to go."""
import time

from common.training.energy import Meter
from common.training.log import clock, duration
from common.training.run import usable_cores
from common.training.status import TrainingStatus
from common.training.supply import Supply
from common.words import counted, printable

NAMES_SHOWN = 5  # names of images in a warning
WAIT_TOLD = 0.05  # share of the time spent waiting for images from which on it is told
WAIT_WARNED = 0.2  # and from which on it is warned of
SHORTEST_WAIT = 1.0  # seconds of an epoch's waiting below which nobody need be warned
LONG = 7200.0  # seconds of a run on a CPU, from which on it is said how a run takes less


class Progress:
    """Follows the losses of a run, and tells them.

    run: Run. log: RunLog. saved: the checkpoint that the run goes on from, or None. batch_of(step): names of
    the images of a step, on all ranks together. against_waiting: what makes a run wait less for its images,
    for a sentence. seconds_an_item: as of Supply.

    The part to save is `sums` (of losses, of gradient norms, number of steps) and `skipped` (steps that were
    not finite), both of this epoch so far. `status` is what the run's line shows. `bad` are the steps in a
    row, up to the last one, that were not finite: [(step, loss, gradient norm)].
    """
    def __init__(self, run, log, saved, batch_of, against_waiting, seconds_an_item):
        self.run = run
        self.log = log
        self.batch_of = batch_of
        self.against_waiting = against_waiting
        self.sums = list(saved['sums']) if saved else [0.0, 0.0, 0]
        self.skipped = saved.get('skipped', 0) if saved else 0
        self.seconds = 0.0  # spent in training steps; evaluation and saving do not count
        self.timed_steps = 0
        self.first_steps = []  # seconds that each of them took, where they are told of apart
        self.has_announced = False
        self.supply = Supply(run, seconds_an_item)
        self.has_told_supply = False
        self.has_warned = False  # of waiting
        self.status = TrainingStatus(run, log.line.now, saved['step'] if saved else 0)
        self.meter = Meter(run.ranks.device)
        self.bad = []
        self.untold_bad = []
        self.steps_since_look = 0
        self.latest = None  # (step, loss, gradient norm) of the last finite step since the last look

    @property
    def step_time(self):
        """Mean seconds of a training step."""
        return self.seconds / max(self.timed_steps, 1)

    @property
    def is_lost(self):
        """Whether so many steps in a row were not finite that it makes no sense to go on."""
        return len(self.bad) >= self.run.options.max_skips

    def start_epoch(self):
        self.began = time.perf_counter()
        self.epoch_seconds = self.epoch_steps = self.epoch_waited = 0

    def add(self, step, loss, norm, finite):
        """Note what a step came to; called in turn, as soon as the device has told. norm: of the gradient."""
        self.steps_since_look += 1
        self.status.add(step, loss if finite else None)
        if finite:
            total, total_norm, steps = self.sums
            self.sums[:] = [total + loss, total_norm + norm, steps + 1]
            self.latest = step, loss, norm
            self.bad = []
        else:
            self.skipped += 1
            self.bad.append((step, loss, norm))
            self.untold_bad.append((step, loss, norm))

    def describe_bad(self, bad):
        """What went wrong in steps that were not finite, for a person."""
        step, loss, norm = bad[-1]
        names = self.batch_of(step)
        if len(bad) > 1:
            steps, last = f'steps {bad[0][0]:,} to {step:,}, {len(bad)} of them, were', 'in the last one '
        else:
            steps, last = f'step {step:,} was', ''
        more = f' and {counted(len(names) - NAMES_SHOWN, "more image")}' if len(names) > NAMES_SHOWN else ''
        return (f'{steps} not finite: {last}the loss was {loss:.4g} and the gradient norm {norm:.4g} at a '
                f'learning rate of {self.run.schedule(step)[0]:.3g}, on '
                f'{", ".join(map(printable, names[:NAMES_SHOWN]))}{more}')

    def add_first_step(self, seconds):
        """Note how long one of the first steps took, which take longer than others. They do not count in what
        is said of the speed.
        """
        self.tell_bad()
        self.first_steps.append(seconds)
        self.steps_since_look = 0
        self.latest = None
        self.status.forget_speed()

    def tell_first_steps(self, what):
        """Tell of the first steps. what: why they took longer, for a person."""
        steps = counted(len(self.first_steps), 'step')
        took = ', '.join(f'{seconds:.1f}' for seconds in self.first_steps)
        self.log.say(f'First {steps}: {took} s. In {"these" if len(self.first_steps) > 1 else "this"} {what}.')
        self.log.record({'first_steps': self.first_steps})

    def look(self, seconds, waited=0.0):
        """Tell of the steps since the last look, which took so many seconds; of these, images were waited for so many."""
        self.tell_bad()
        steps = self.steps_since_look
        self.steps_since_look = 0
        self.seconds += seconds
        self.timed_steps += steps
        self.epoch_seconds += seconds
        self.epoch_steps += steps
        self.epoch_waited += waited
        self.supply.add(steps, seconds, waited)
        if self.latest is None:
            return
        step, loss, norm = self.latest
        self.latest = None
        lr, decay = self.run.schedule(step)
        left = (self.run.steps - 1 - step) * self.step_time
        rate = steps * self.run.options.batch_size / seconds
        share = min(waited / seconds, 1)
        self.log.scalars({'loss': loss, 'gradient_norm': norm, 'learning_rate': lr, 'weight_decay': decay,
                          'images_per_second': rate, 'data_wait': share}, step + 1)
        self.status.share_waited = share if share > WAIT_TOLD else 0.0
        if not self.has_announced:
            self.has_announced = True
            what = 'next' if self.first_steps else 'first'
            took = f'The {what} step took {self.step_time:.2f} s' if self.timed_steps == 1 else \
                f'The {what} {self.timed_steps} steps took {self.step_time:.2f} s each'
            is_long = self.run.ranks.device.type == 'cpu' and left > LONG
            smaller = ' On a CPU a smaller --model and --input_size take less, in a new run.' if is_long else ''
            self.log.say(f'{took}: about {duration(left)} to go, until {clock(left)}.{smaller}')
        if self.supply.is_measured and not self.has_told_supply:
            self.has_told_supply = True
            self.tell_supply()

    def tell_supply(self):
        """Say how many images a second are loaded, and could be trained on. Warn if steps wait for them."""
        supply = self.supply
        is_short = supply.share_waited > WAIT_WARNED and supply.seconds_waited_an_epoch > SHORTEST_WAIT
        if self.has_warned or not is_short:
            self.log.say(f'Images: {supply.describe()}.')
        elif self.run.ranks.is_main:
            self.has_warned = True
            share = f'{100 * supply.share_waited:.0f} %'
            self.log.warn(f'{supply.describe()}: {share} of the time was spent waiting for images. Training '
                          f'is faster with {self.against_waiting}. This machine has '
                          f'{counted(usable_cores(), "core")}')

    def tell_bad(self):
        """Warn of the steps since the last look that were not finite."""
        if self.untold_bad and self.run.ranks.is_main:
            lowers = ' but the scale of the loss, which fp16 needs lower now and then' * self.run.is_scaled
            last = self.untold_bad[-1][0]
            self.log.warn(f'{self.describe_bad(self.untold_bad)}. Such a step changes nothing{lowers}; '
                          f'{self.skipped} in {self.run.unit.span(last // self.run.per_epoch + 1)} so far')
            self.log.record({'skipped': [step for step, *_ in self.untold_bad], 'step': last + 1,
                             'lr': self.run.schedule(last)[0], 'images': self.batch_of(last)[:NAMES_SHOWN]})
        self.untold_bad = []

    def end_epoch(self, epoch, metrics, unreadable, metrics_text):
        """Write the line of an epoch (counted from 1) to the log and the terminal; called on all ranks.

        metrics: {name: value} for the log, None where not measured; metrics_text: the same for a person, ''
        if nothing was measured. unreadable: number of images that could not be read so far.
        """
        step = epoch * self.run.per_epoch
        loss, norm, steps = self.sums
        loss, norm = (loss / steps, norm / steps) if steps else (None, None)
        lr, decay = self.run.schedule(step - 1)
        steps_left = self.run.steps - step
        left = steps_left * self.step_time if self.timed_steps or not steps_left else None  # None: nothing is timed yet
        energies, waits = zip(*self.run.ranks.gather([(self.meter.kwh(), self.epoch_waited)]))
        waited = max(waits)  # all ranks wait for the slowest
        share = round(min(waited / self.epoch_seconds, 1), 4) if self.epoch_steps else None
        rate = self.epoch_steps * self.run.options.batch_size / self.epoch_seconds if self.epoch_steps else None
        unit = self.run.unit
        self.log.record({
            unit.name: unit.number(epoch), 'step': step, 'loss': loss, **metrics, 'gradient_norm': norm, 'lr': lr,
            'weight_decay': decay, 'skipped': self.skipped, 'unreadable': unreadable, 'images_per_second': rate,
            'data_wait': share, 'seconds': time.perf_counter() - self.began,
            'gpu_kwh': None if None in energies else sum(energies), 'remaining': None if left is None else duration(left),
            'finish': None if left is None else clock(left)})
        self.log.scalars({name: value for name, value in metrics.items() if value is not None}, step)
        if metrics_text:
            self.status.measured = metrics_text, epoch
        parts = ['no finite step'] if loss is None else [
            f'loss {loss:.4f}', *([metrics_text] if metrics_text else []), f'lr {lr:.2e}', f'gradient norm {norm:.3f}']
        if loss is not None and rate:
            parts.append(f'{rate:.1f} images/s')
        if left is not None:
            parts.append(f'{duration(left)} left')
        if share is not None and share > WAIT_TOLD:
            parts.append(f'waited {100 * share:.0f} % for images')
        if self.skipped:
            parts.append(f'{counted(self.skipped, "step was", "steps were")} not finite')
        if unreadable:
            parts.append(f'{counted(unreadable, "unreadable image")} so far')
        self.log.say(f'{unit.of(epoch, self.run.epochs)}: {", ".join(parts)}')
        self.sums = [0.0, 0.0, 0]
        self.skipped = 0
        self.warn_of_waiting(epoch, share, waited)
        if epoch == self.run.epochs and loss is not None:
            self.warn_of_loss(loss)

    def warn_of_loss(self, loss):
        """Warn if the mean loss of the last epoch, which is given, is larger than that of the first."""
        first = self.log.first_loss()
        if first is not None and loss > first:
            self.log.warn(f'the mean loss grew from {first:.4g} in the first epoch to {loss:.4g} in the last: probably the '
                          'learning rate is too high. Start over with a lower one: --fresh --lr')

    def warn_of_waiting(self, epoch, share, waited):
        """Warn once, if an epoch has spent too large a share of its time waiting for images, `waited` seconds in all."""
        is_long = share is not None and share > WAIT_WARNED and waited > SHORTEST_WAIT
        if is_long and not self.has_warned and self.run.ranks.is_main:
            self.has_warned = True
            when = self.run.unit.span(epoch)
            self.log.warn(f'{100 * share:.0f} % of the time of {when} was spent waiting for images '
                          f'(--workers={self.run.workers}): training is faster with {self.against_waiting}')
