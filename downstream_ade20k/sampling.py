"""The order in which the iterations of a run take its images."""
from common.images.augmented import Steps


class Passes(Steps):
    """Steps that go through the images again and again, each time in another order.

    As there are no epochs, a batch may hold the last images of one pass and the first ones of the next, and every
    image comes as often as any other. In place of the epoch, items have the number of the pass.

    steps: of the whole run. The other arguments are those of Steps.
    """

    def __init__(self, images, batch, steps, seed, start=0, rank=0, ranks=1, accum=1, left_out=()):
        epochs = -(-steps // -(-images // batch))  # The last of these may be longer than the run.
        super().__init__(images, batch, epochs, seed, start, rank, ranks, accum, left_out=left_out)
        self.steps = [step for step in self.steps if step < steps]
        self.orders = {}  # {number of a pass: its order}, of the last one and the one before

    def order(self, epoch):
        if epoch not in self.orders:
            before = {number: order for number, order in self.orders.items() if number == epoch - 1}
            self.orders = {**before, epoch: super().order(epoch)}
        return self.orders[epoch]

    def batch_of(self, step, order=None, places=None):
        """The (pass, index) pairs of a step. places: which places of the batch; all of them if not given."""
        places = range(self.batch) if places is None else places
        numbers = [divmod(step * self.batch + place, self.images) for place in places]
        return [(number, int(self.order(number)[place])) for number, place in numbers]

    def __iter__(self):
        part = self.images_per_rank // self.accum
        for step in self.steps:
            # A batch is divided into parts first, and each part among the ranks, as in Steps.
            for begin in range(0, self.batch, self.batch // self.accum):
                own = begin + self.rank * part
                yield self.batch_of(step, places=range(own, own + part))
