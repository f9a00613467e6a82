"""What the line of a run shows while it trains (common/live_line.py)."""
from common.live_facts import elapsed_of, left_of, rate_of

RECENT = 0.1  # weight of the last step in the loss and in the speed that are shown
UNKNOWN = None, 0.0, 0  # seconds of a step as of the last ones, and of all that are timed; the number of these


class TrainingStatus:
    """How far a run has come, its loss and speed, what was measured last, and the time left.

    Training sets numbers here as soon as a step's result is known, and waits for nobody. A thread reads them.
    Time between two epochs, in which images are measured, counts neither as speed nor for the time left.

    run: Run. now: the clock, in seconds. start: the first step that is left to do.
    """

    def __init__(self, run, now, start=0):
        self.run = run
        self.now = now
        self.done = start  # steps
        self.loss = None  # as of the last steps
        self.measured = None  # (text, epoch after which it was measured)
        self.share_waited = 0.0  # for images
        self.speed = UNKNOWN  # in one piece, since the thread may read it at any time
        self.began = self.since = now()  # of the training, and of the step that goes on

    def begin(self, step):
        """Note that steps begin, or go on, with this one."""
        self.done = step
        self.since = self.now()

    def add(self, step, loss):
        """Note that a step is done. loss: None if it was not finite."""
        seconds = self.now() - self.since
        self.since += seconds
        self.done = step + 1
        recent, total, timed = self.speed
        self.speed = averaged(recent, seconds), total + seconds, timed + 1
        if loss is not None:
            self.loss = averaged(self.loss, loss)

    def forget_speed(self):
        """Leave out the steps until now, which took longer than those to come."""
        self.speed = UNKNOWN

    def status(self, now):
        """As LiveLine shows it: (share of the run that is done, facts)."""
        run = self.run
        epochs, steps = run.epochs, run.steps
        epoch = min(self.done // run.per_epoch + 1, epochs)
        share = self.done / steps
        loss = 'first step' if self.loss is None else f'loss {self.loss:.4f}'
        place = (f'step {self.done:,}/{steps:,}', f'{self.done}/{steps}', f'{100 * share:.0f}%', '')
        facts = [place, (loss,)]
        if run.unit.name == 'epoch':  # which says more than the number of the step; that of an iteration is the same
            facts.insert(0, (f'epoch {epoch}/{epochs}',) * 4 + (f'{epoch}/{epochs}',))
        if self.measured:
            text, at = self.measured
            number = f'{run.unit.number(at):,}'
            facts.append((f'{text} after {run.unit.at(at)}', f'{text} ({run.unit.at(at)})',
                          f'{text.split(" (")[0]} ({run.unit.name[:2]} {number})', ''))
        recent, total, timed = self.speed
        if recent:
            facts += [rate_of(run.options.batch_size / recent, 'image'), left_of(self.left(total / timed, now))]
        facts.append(elapsed_of(now - self.began))
        if self.share_waited:
            facts.append((f'waits {100 * self.share_waited:.0f} % for images', ''))
        return share, facts

    def left(self, of_a_step, now):
        """Seconds that are left, from those of a step; they become fewer while a step goes on."""
        of_this_one = max(of_a_step - (now - self.since), 0.0)
        return max(self.run.steps - self.done - 1, 0) * of_a_step + of_this_one


def averaged(average, value):
    """A moving average with one more value; None at first."""
    return value if average is None else average + RECENT * (value - average)
