"""How a run tells what it does while it trains: the progress line, scalars, the time to go."""
import time

from common.energy import Meter
from common.log import clock, duration


class Progress:
    """Follows the losses of a run. `sums` (loss, gradient norm, steps of this epoch so far) is the part to save.

    metric: what the progress line says besides, from the last evaluation.
    """

    def __init__(self, run, log, sums=None):
        self.run, self.log, self.sums = run, log, list(sums or (0.0, 0.0, 0))
        self.seconds, self.timed = 0.0, 0  # spent in training steps, and how many: evaluation and saving do not count
        self.announced, self.metric, self.meter = False, '', Meter(run.ranks.device)

    @property
    def step_time(self):
        return self.seconds / max(self.timed, 1)

    def start_epoch(self):
        self.began = time.perf_counter()
        self.epoch_seconds = self.epoch_steps = 0

    def look(self, results, seconds):
        """results: [(step, loss, gradient norm)] of the steps since the last look, which took so many seconds."""
        for _, loss, norm in results:
            self.sums[0], self.sums[1], self.sums[2] = self.sums[0] + loss, self.sums[1] + norm, self.sums[2] + 1
        self.seconds, self.timed = self.seconds + seconds, self.timed + len(results)
        self.epoch_seconds, self.epoch_steps = self.epoch_seconds + seconds, self.epoch_steps + len(results)
        step, loss, norm = results[-1]
        (lr, decay), left = self.run.schedule(step), (self.run.steps - 1 - step) * self.step_time
        rate = len(results) * self.run.options.batch_size / seconds
        self.log.scalars({'loss': loss, 'gradient_norm': norm, 'learning_rate': lr, 'weight_decay': decay,
                          'images_per_second': rate}, step + 1)
        self.log.progress(f'epoch {step // self.run.per_epoch + 1}/{self.run.options.epochs}  step {step + 1}/'
                          f'{self.run.steps}  loss {loss:.4f}  {self.metric}lr {lr:.2e}  {rate:.1f} images/s  '
                          f'{duration(left)} left')
        if not self.announced:
            self.announced = True
            self.log.say(f'The first {self.timed} steps took {self.step_time:.2f} s each: about {duration(left)} to go, '
                         f'until {clock(left)}.')

    def end_epoch(self, epoch, metrics, unreadable, said):
        """Write the line of an epoch (counted from 1) to the log and the terminal; called on all ranks.

        metrics: {name: value} for the log, None where not measured; said: the same for a person. unreadable: images so far.
        """
        step, (loss, norm, steps) = epoch * self.run.per_epoch, self.sums
        (lr, decay), left = self.run.schedule(step - 1), (self.run.steps - step) * self.step_time
        drawn = self.run.ranks.gather([self.meter.kwh()])
        entry = {'epoch': epoch, 'step': step, 'loss': loss / steps, **metrics, 'gradient_norm': norm / steps,
                 'lr': lr, 'weight_decay': decay, 'unreadable': unreadable,
                 'images_per_second': self.epoch_steps * self.run.options.batch_size / self.epoch_seconds,
                 'seconds': time.perf_counter() - self.began, 'gpu_kwh': None if None in drawn else sum(drawn),
                 'remaining': duration(left), 'finish': clock(left)}
        self.sums = [0.0, 0.0, 0]
        self.log.record(entry)
        self.log.scalars({name: value for name, value in metrics.items() if value is not None}, step)
        self.metric = said or self.metric
        self.log.say(f'epoch {epoch}/{self.run.options.epochs}: loss {entry["loss"]:.4f}, {said.strip() + ", " if said else ""}'
                     f'lr {lr:.2e}, gradient norm {entry["gradient_norm"]:.3f}, {entry["images_per_second"]:.1f} images/s, '
                     f'{duration(left)} left' + (f', {unreadable} unreadable images so far' if unreadable else ''))
