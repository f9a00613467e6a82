"""How many images a second the loading processes give, and how many the steps could take."""

SETTLED = 10  # first steps that are not looked at: they take longer than the others
MEASURED = 10  # steps, at least, over which it is measured


class Supply:
    """Compares the two, on the main rank for itself: the others have as many images and processes.

    run: a Run. seconds_an_item: returns the mean seconds in which a loading process makes an image.

    That is measured where the images are made, so that the rate is what the processes can do: where they are
    faster than the steps, they wait most of the time.
    """

    def __init__(self, run, seconds_an_item):
        self.run = run
        self.seconds_an_item = seconds_an_item
        # What a process has loaded ahead, two batches, is there without a wait.
        self.settled = SETTLED + 2 * run.workers
        self.steps_before = 0  # that were not looked at
        self.steps = 0
        self.seconds = 0.0
        self.waited = 0.0

    def add(self, steps, seconds, waited):
        """Note some steps in a row, which took so many seconds; of these, images were waited for so many."""
        if self.steps_before < self.settled:
            self.steps_before += steps
            return
        self.steps += steps
        self.seconds += seconds
        self.waited += min(waited, seconds)

    @property
    def is_measured(self):
        """Whether enough steps were looked at."""
        return self.steps >= MEASURED and self.seconds > 0

    @property
    def share_waited(self):
        """The share of the time in which steps waited for images."""
        return self.waited / self.seconds

    @property
    def seconds_waited_an_epoch(self):
        """Seconds for which an epoch will wait at this rate."""
        return self.waited / self.steps * self.run.per_epoch

    def describe(self):
        """Both rates of a rank, for a person."""
        run = self.run
        rank = ' a rank' if run.ranks.size > 1 else ''
        seconds = self.seconds_an_item()
        if run.workers == 0:
            loaded = (f'the training process itself loads about {rounded(1 / seconds)} images/s{rank} '
                      '(--workers=0)')
        else:
            given = 'loading processes' if run.workers > 1 else 'loading process'
            gives = 'give' if run.workers > 1 else 'gives'
            loaded = f'{run.workers} {given}{rank} {gives} about {rounded(run.workers / seconds)} images/s'
        busy = max(self.seconds - self.waited, 1e-9)
        return f'{loaded}, and the steps could take {rounded(self.steps * run.images_per_rank / busy)}'


def rounded(rate):
    """A rate in two digits: '1,200', '35', '0.21'."""
    return f'{float(f"{rate:.2g}"):,.10g}'
