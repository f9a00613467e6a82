"""The trainer: the life of a training run, from where it was saved, or from the beginning, to its end.

`Trainer.fit` opens the run folder, builds the network, loads a checkpoint, trains epoch after epoch, saves,
and ends the run. Pretraining, fine-tuning and detection are its subclasses. They say what is trained, on
which batches, and what is measured; all else is here.

The host does not wait for the device's step, but reads its result two steps later. So the step, `train_step`,
can be captured as one CUDA graph (common/training/graph.py).
"""
import sys
import time
from collections import deque
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice

import torch

from common.distributed import data_parallel
from common.images.datasets import mostly_unread
from common.images.loading import naming_the_file
from common.images.survey import warn_of
from common.memory_errors import OutOfMemory, is_out_of_memory
from common.networks.create import warn_of_normalisation
from common.networks.load import load_strictly
from common.reliability.checkpoint import (
    copied,
    earlier,
    git_commit,
    load_run,
    open_folder,
    require_space,
    set_aside,
)
from common.reliability.stopping import Stopped
from common.seeds import seed_for
from common.start import said_if_long
from common.sync_batchnorm import synchronise_batchnorm
from common.training.accumulation import fit_accumulation, require_memory
from common.training.compilation import compile_network, repeated_blocks
from common.training.device import to_host
from common.training.extension import (
    described_extension,
    epoch_is_open,
    extended,
    how_to_go_on,
    is_finished,
)
from common.training.graph import CUDARecorder, GraphedStep
from common.training.log import RunLog
from common.training.optim import BufferGuard, load_state, optimizer_size, set_schedule, weights_size
from common.training.progress import Progress
from common.training.recipe import starts_over
from common.training.scaling import LossScaler
from common.training.session import Session
from common.words import first_line

END_PATIENCE = 300.0  # seconds for which a run that ends keeps trying to write its last files
STOP_PATIENCE = 10.0  # the same, of a run that was asked to stop
REWINDS = 5  # times that a run goes back by itself
LAG = 2  # steps by which the host trails the GPU when it reads results, so that neither waits


class NotFinite(ValueError):
    """Several steps in a row were NaN or infinite; they changed nothing. steps: a range."""
    on_all_ranks = True  # Every rank raises it, so one of them reports it.

    def __init__(self, message, steps):
        super().__init__(message)
        self.steps = steps


class NeverFinite(ValueError):
    """No step of the last epoch was finite, so that the run has come to nothing."""
    on_all_ranks = True


class Trainer:
    """Trains a network on the images of a run, and saves it so that the same command goes on.

    run: Run (common/training/run.py). images, val_images: data sets, the latter None if there are none.

    A subclass defines `log_name`, `project`, `build_network`, `forward_one_image`, `example_batch`,
    `build_optimizer`, `make_datasets`, `make_batches`, `evaluate_epoch` and `describe`, and overrides what
    else is different.

    `attempt` sets these attributes, in this order: `saved` (the checkpoint that the run goes on from, or
    None), `network` (forward(*batch) returns the loss), `log`, `session`, `train_dataset` and `val_dataset`
    (the images to train on, and those to measure on); then `prepare` sets `accum` (the parts into which a rank cuts its
    batch), `batches` and `sampler` (the Steps that order them), `compiled` (what became of --compile),
    `optimizer`, `step` (called with batches and requests, as `eager_step`), `parallel` (the network with the
    exchange of gradients) and `progress`.
    """
    log_name = None  # of the file of JSON lines in the run folder
    project = None  # the name under which a tracker files the run
    fixed_shapes = True  # whether all batches have the same shape
    against_waiting = 'more --workers'  # what makes a run wait less for its images
    weights_option = 'finetune_from'  # by which another run starts from the weights of this one

    def __init__(self, run, images, val_images=None):
        self.run = run
        self.options = run.options
        self.ranks = run.ranks
        self.images = images
        self.val_images = val_images

    # -- what a program defines ------------------------------------------------------------------------------

    def build_network(self):
        """The network to train, on the CPU, with random initial weights. Raises ValueError."""
        raise NotImplementedError

    def forward_one_image(self):
        """Take one image through the network, for a look at its norms (common/networks/norms.py)."""
        raise NotImplementedError

    def load_given_weights(self):
        """Fill the network of a run that begins with the weights that the options name.

        Returns a sentence on them, or None if there are none.
        """
        return

    def facts(self):
        """{name: plain data} that is saved besides the options, and must be the same when a run goes on."""
        return {}

    def trained_part(self):
        """The module whose weights are saved: the network, or a part of it."""
        return self.network

    def place_network(self):
        """Bring the network to the device, in the memory layout in which it trains."""
        self.network = self.network.to(self.ranks.device, memory_format=torch.channels_last)

    def example_batch(self, images):
        """The arguments of the network for so many random images, on the device."""
        raise NotImplementedError

    def parts_to_compile(self):
        """The modules that --compile compiles, each by itself, none inside another."""
        return repeated_blocks(self.network) or [self.network]

    def connect_ranks(self):
        """Have the networks of all ranks work together, if they do more than to average gradients.

        Called once, on all ranks, when it is known how a batch is divided among them.
        """

    def build_optimizer(self):
        raise NotImplementedError

    def make_datasets(self):
        """(training images, images to measure on) as the network takes them: Augmented data sets."""
        raise NotImplementedError

    def make_batches(self):
        """(batches, steps): the network's arguments from the step `start` on, and the Steps that order them.

        There are `accum` batches a step. Their loading processes start here: iter(loader(...)).
        """
        raise NotImplementedError

    def describe(self):
        """What the run will do, for a person."""
        raise NotImplementedError

    def surroundings(self):
        """What `describe` says last of every run: [(word, text)] on compilation, kernels, machine and folder."""
        run = self.run
        return [*self.compiled.described(), ('kernels', run.launching(self.is_graphed)), ('machine', run.machine),
                ('folder', f'{run.folder}{run.going_on(self.saved)}')]

    def image_remarks(self):
        """Sentences on images that are not read, said before anything else."""
        remark = mostly_unread(self.images)
        return [remark] if remark else []

    def warnings(self):
        """Sentences on what is allowed and seldom meant."""
        if self.options.graph and self.not_graphed_because:
            yield f'--graph is not used: {self.not_graphed_because}'
        is_timms = not self.saved and getattr(self.options, self.weights_option) == 'timm'
        if is_timms and (said := warn_of_normalisation(self.options.model, self.options.normalisation)):
            yield said
        yield from self.compiled.warnings()
        yield from self.run.warnings(self.saved, self.accum)

    def before_training(self):
        """Called once before the first step. Returns False if the run was asked to stop meanwhile."""
        return True

    def evaluate_epoch(self, epoch, is_last):
        """What is measured after an epoch (counted from 1): ({name: number or None}, the same for a person).

        None if a signal cut it short: it is measured once more when the run goes on.
        """
        raise NotImplementedError

    def before_step(self, step):
        """Set on the device what depends on the number of the step."""
        set_schedule(self.optimizer, *self.run.schedule(step), floor=self.run.floor(step))

    def after_step(self, finite):
        """Called after each step. finite: 0-dim tensor on the device, 1, or 0 if the step changed nothing."""

    def after_epoch(self, epoch, is_last):
        """Called on the main rank once an epoch (counted from 1) stands in the log."""

    def checkpoint_content(self):
        """What a checkpoint holds besides what all runs have, in copies."""
        raise NotImplementedError

    def summary(self):
        """What a finished run has come to, for a person."""
        raise NotImplementedError

    # -- the life of a run -----------------------------------------------------------------------------------

    def fit(self):
        """Train to the end of the run, and return its folder.

        With the option `rewind` the run goes back to its last checkpoint where several steps in a row were
        not finite, and goes on without them. Raises ValueError, before any work, for what does not fit
        together; NotFinite; OutOfMemory; Stopped or Unwritten (common/reliability/stopping.py) if a signal or
        the disk ends it.
        """
        left_out = []  # (first step, step after the last) of those that were not finite
        while True:
            # The main rank says so for all: torchrun may have started this one more often.
            fresh = self.ranks.broadcast_object(starts_over(self.options)) and not left_out
            try:
                self.attempt(fresh, left_out)
                return self.run.folder
            except NotFinite as error:
                if not self.options.rewind or len(left_out) == REWINDS:
                    raise
                left_out.append((error.steps.start, error.steps.stop))
                self.release()
            except RuntimeError as error:
                if self.accum is None or not is_out_of_memory(error):
                    raise
                remedy = self.run.against_memory(self.saved or self.saved_now, self.accum)
                raise OutOfMemory(f'out of GPU memory ({first_line(error)}): {remedy}') from error

    @property
    def saved_now(self):
        """What `Run.keeps_parts` will read of the checkpoint at the next start; None if nothing was saved."""
        if not self.run.checkpoint.exists():
            return None
        return {'ranks': self.ranks.size, 'config': {'accum': self.options.accum}}

    def release(self):
        """Let go of what an attempt has made: the next one needs the device's memory."""
        self.network = self.optimizer = self.parallel = self.guard = self.scaler = None
        self.batches = self.progress = None

    def release_graph(self):
        """Let go of the step's CUDA graph. NCCL ends only when no graph holds its collectives any more."""
        if isinstance(self.step, GraphedStep):
            self.step.release()
        self.step = None

    def attempt(self, fresh, left_out):
        """Start the run, or go on with what was saved unless `fresh`; without the steps in `left_out`."""
        options, ranks = self.options, self.ranks
        self.stop_requested = self.save_requested = False
        self.step = self.accum = self.batches = None
        self.saved = None if fresh else load_run(options.resume, self.run.checkpoint, ranks)
        torch.manual_seed(seed_for('weights', options.seed))
        with said_if_long(f'Building {options.model}'):
            self.network = self.build_network()
        self.run = self.run.without(self.saved, left_out)
        self.run = self.run.with_norms(self.saved, self.network, self.forward_one_image)
        loaded = None
        if self.saved:
            self.run.refuse_changes(self.saved, **self.facts())
            self.run = extended(self.run, self.saved, self.weights_option)
            load_strictly(self.trained_part(), self.saved.pop('model'))  # popped: not kept in memory for days
        else:
            loaded = self.load_given_weights()
        moved_to = open_folder(self.run.folder, fresh, ranks, self.run.checkpoint)
        purge_step = self.start + 1 if self.saved else 0  # what TensorBoard has from there on will come again
        with ranks.on_all(lambda: RunLog(self.run.folder, ranks.rank, self.log_name, options, self.project,
                                         purge_step)) as self.log:
            self.say_what_was_found(moved_to, loaded)
            if is_finished(self.run, self.saved):
                length = self.run.unit.length(self.run.epochs)
                self.log.say(f'This run is finished: {length}, {self.saved["path"]}. {how_to_go_on(self.run)} '
                             '--fresh starts it over.')
            else:
                with Session(self.run, self.log, self.saved).opened() as self.session:
                    self.train_dataset, self.val_dataset = self.make_datasets()
                    try:
                        with naming_the_file(self.train_dataset, self.val_dataset), self.session.noting_errors():
                            with self.log.line.counting('preparing the first step'):
                                self.prepare()
                            self.train()
                        self.end()
                    finally:
                        self.release_graph()

    @property
    def start(self):
        """The first step that is left to do."""
        return self.saved['step'] if self.saved else 0

    def say_what_was_found(self, moved_to, loaded):
        if moved_to:
            self.log.say(f'What was in {self.run.folder} is in {moved_to} now.')
        for remark in self.image_remarks() if self.ranks.is_main else ():
            self.log.warn_once(remark)
        if loaded:
            self.log.say(loaded)

    def prepare(self):
        """Bring the network to its device, and make what trains it."""
        options, ranks, saved = self.options, self.ranks, self.saved
        self.session.heartbeat.now('finding out what fits in memory')
        self.accum = self.run.parts(saved)
        if self.accum is not None:
            require_memory(self.network, self.example_batch, self.run.images_per_rank, self.accum, ranks, self.run.autocast,
                           self.run.against_memory(saved, self.accum))
            if not saved:
                self.start_loading()
        self.place_network()
        if self.accum is None:
            self.accum = fit_accumulation(self.network, self.example_batch, self.run.images_per_rank, ranks, self.run.autocast,
                                          self.run.smallest_part, keeps_inputs=self.is_graphed,
                                          reason_against_parts=partial(options.reason_against_parts, ranks.size,
                                                                       goes_on=bool(saved)),
                                          remedy=options.against_memory(bool(saved)))
            if not saved:
                self.start_loading()
        self.session.heartbeat.now('compiling the network')
        self.compiled = compile_network(self.network, self.parts_to_compile, self.example_batch, self.run, saved,
                                        self.accum, self.fixed_shapes)
        self.session.heartbeat.now('preparing the first step')
        if ranks.size > 1 and options.sync_bn:
            self.network = synchronise_batchnorm(self.network, equal_counts=self.fixed_shapes)
        self.optimizer = self.build_optimizer()
        self.scaler = LossScaler(ranks.device) if self.run.is_scaled else None
        if saved:
            load_state(self.optimizer, saved.pop('optimizer'))
            if self.scaler and saved.get('scaler'):
                self.scaler.load_state_dict(saved.pop('scaler'))
            self.start_loading()  # not before: loading processes keep whatever is in memory when they start
        torch.backends.cudnn.benchmark = self.fixed_shapes
        self.guard = BufferGuard(self.network)
        self.step = self.eager_step
        if self.is_graphed:
            recorder = CUDARecorder(ranks.device) if ranks.device.type == 'cuda' else None
            self.step = GraphedStep(self.eager_step, self.accum, self.optimizer, ranks, self.log.warn,
                                    self.make_parallel, recorder)
        self.connect_ranks()
        self.make_parallel()
        self.progress = Progress(self.run, self.log, saved, self.names_of_batch, self.against_waiting,
                                 self.train_dataset.seconds_an_item)

    def start_loading(self):
        """Have the loading processes start on the first batches.

        That is done as soon as it is known into how many parts a batch is cut, so that they work beside all
        that comes before the first step: the network's way to its device, the optimiser, the held-out loss.
        While the network is built it is too early, for two reasons. PyTorch reports the death of a loading process
        as a RuntimeError at whatever line the training process is, and the functions that examine a network
        (common/networks/norms.py, and a method's own) would take it for an error of the network. And the size of
        the images is known only once the network is built.
        """
        self.unreadable = set(self.saved.get('unreadable', ())) if self.saved else set()  # names of images
        self.known_to_all = set(self.unreadable)  # those of them that all ranks know
        batches, self.sampler = self.make_batches()
        self.batches = self.session.batches(batches)

    def names_of_batch(self, step):
        """The names of the images of a step, on all ranks together."""
        return [self.train_dataset.name(index) for _, index in self.sampler.batch_of(step)]

    @property
    def is_graphed(self):
        """Whether the step runs as a CUDA graph; elsewhere than on CUDA, on the same static inputs."""
        return self.run.is_graphed and self.not_graphed_because is None

    @property
    def not_graphed_because(self):
        """Why the step cannot be a CUDA graph, for a person; None if it can."""
        if not self.fixed_shapes:
            return 'the batches differ in their shapes'
        if self.options.opt == 'lars':
            return 'LARS has its steps called off by the host'
        return None

    def make_parallel(self):
        """Set `parallel`: the network, in DDP if there are several ranks."""
        options = self.options
        self.parallel = None  # DDP's buckets are as large as the gradients: not two of them at once
        with self.step.on_stream() if self.is_graphed else nullcontext():
            self.parallel = data_parallel(self.network, self.ranks, options.sync_bn, options.bf16_gradients)

    def eager_step(self, batches, requests):
        """`train_step`, and what follows each step."""
        result = train_step(self.parallel, batches, self.accum, self.optimizer, self.guard, self.ranks, self.run.autocast,
                            self.clip_grad(), requests, self.scaler)
        self.after_step(result[2])
        return result

    def train(self):
        """Train from the first step that is left to the end of the last epoch."""
        run = self.run
        self.ranks.on_main(self.check_disk)
        # An epoch whose steps were all done when the run was saved still lacks its line in the log.
        is_end_of_epoch = self.start > 0 and self.start % run.per_epoch == 0
        is_pending = is_end_of_epoch and self.saved['images'] == run.images and epoch_is_open(self.saved)
        self.ranks.on_main(lambda: self.log.forget_after(self.start, is_pending or self.start == 0, run.unit.name))
        self.announce()
        if self.start == 0 and not self.before_training():
            self.stop(0)
        first = self.start // run.per_epoch
        if is_pending:
            first -= 1
        for epoch in range(first, run.epochs):
            self.train_epoch(epoch)
            self.end_epoch(epoch + 1)

    def end(self):
        """Wait until all files are written, and say what has come of the run."""
        self.batches = None  # ends the loading processes: Python's exit would wait for them for ever
        self.session.end(END_PATIENCE, 'the run has come to its end, but its last files could not be written '
                         f'into {self.run.folder}: make room there, and the same command goes on from the '
                         'last checkpoint')
        self.log.say(self.summary())
        self.log.say(how_to_go_on(self.run))

    def check_disk(self):
        """Set aside what is damaged. Raises ValueError if there is no room for the checkpoints."""
        there = len(earlier(self.run.checkpoint)) + self.run.checkpoint.exists()
        require_space(self.run.folder, self.checkpoint_size(), max(1, self.options.keep + 1 - there))
        set_aside(self.saved['damaged'] if self.saved else {}, self.log.warn)

    def checkpoint_size(self):
        """Bytes of a checkpoint, about."""
        return weights_size(self.network) + optimizer_size(self.optimizer)

    def announce(self):
        """Say and record what the run will do."""
        self.log.say(self.describe())
        if self.run.ended_at:
            self.log.say(described_extension(self.run))
        self.ranks.on_main(self.warn_and_record)

    def warn_and_record(self):
        """Warn of what looks wrong, and record how the run starts. Raises ValueError if no image can be read."""
        for warning in chain(warn_of(self.images, self.options), self.warnings()):
            self.log.warn(warning)
        self.log.record({**self.run.record(self.start, self.accum, git_commit(), sys.argv),
                         'compiled': self.compiled.is_on})

    def train_epoch(self, epoch):
        """Take the steps that are left of an epoch (counted from 0), and save at those that ask for it."""
        self.progress.start_epoch()
        for step, stop in self.run.segments(epoch, self.start):
            while step < stop:
                with self.log.line.showing(self.progress.status):
                    step = self.train_steps(range(step, stop))
                if self.stop_requested:
                    self.stop(step)
                if self.progress.is_lost:
                    self.give_up(epoch)
                if self.save_requested or step == stop and self.run.saves_at(step):
                    self.save(step)

    def end_epoch(self, epoch):
        """Measure, tell and save what an epoch (counted from 1) has come to."""
        step, is_last = epoch * self.run.per_epoch, epoch == self.run.epochs
        found = self.evaluate_epoch(epoch, is_last)
        if found is None:
            self.stop(step)
        if is_last and not self.progress.sums[2]:
            raise NeverFinite(f'no step of {self.run.unit.span(epoch)}, the last, was finite: the weights are those of an '
                              'earlier step, and probably no good. Nothing is exported. Start over with a lower rate, '
                              '--fresh --lr, or --precision=fp32')
        self.share_unreadable()
        metrics, text = found
        self.progress.end_epoch(epoch, metrics, len(self.unreadable), text)
        if self.ranks.is_main:
            self.after_epoch(epoch, is_last)
        if is_last or epoch % self.options.save_every == 0:
            self.save(step)

    def train_steps(self, steps):
        """Train on a range of steps; the step that comes next.

        That is the end of the range, unless a rank asked to stop or to save before. All ranks return at the
        same step, with the results of all steps read.
        """
        self.parallel.train()
        self.progress.status.begin(steps.start)
        began = time.perf_counter()
        first_steps = self.first_steps - len(self.progress.first_steps)  # that are left
        waiting = deque()  # (step, its result, event of its arrival) of those that are not read yet
        interrupted = False
        step = steps.start - 1

        def read_result():
            at, result, arrived = waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            return self.note_result(at, *result.tolist())

        for step in steps:
            # Drop path and dropout: a function of where we are, so that there is no random state to save.
            torch.manual_seed(seed_for('noise', self.options.seed, step, self.ranks.rank))
            self.before_step(step)
            result = self.step(self.batches, self.session.requests)
            waiting.append((step, *to_host(result)))
            done = step + 1 - steps.start
            lag = self.lag if done > first_steps else 0
            while len(waiting) > lag:
                interrupted |= read_result()
            now = time.perf_counter()
            if done <= first_steps:
                self.note_first_step(now - began, is_last=done == first_steps)
                began = now
            if interrupted:  # on all ranks at the same step, for all read the same result
                break
            if done > first_steps and ((step + 1) % self.options.log_every == 0 or done == max(first_steps, 0) + 5):
                self.look(now - began)
                began = now
        while waiting:
            read_result()
        if self.progress.steps_since_look:
            self.look(time.perf_counter() - began)
        return step + 1

    @property
    def lag(self):
        """By how many steps the host trails the device when it reads results."""
        return LAG if self.ranks.device.type == 'cuda' else 0

    @property
    def first_steps(self):
        """Number of steps at the beginning that take longer than others."""
        if self.ranks.device.type != 'cuda':
            return 0
        return self.step.first_steps if self.is_graphed else 1

    def note_first_step(self, seconds, is_last):
        """Note one of the steps that take longer, whose result is read. After the last one all are told of."""
        self.progress.add_first_step(seconds)
        self.session.waits.taken()  # not of the steps whose speed is told
        if is_last:
            what = 'the GPU loads and chooses its kernels'
            if self.is_graphed and self.step.captured:
                what += ', and the step is captured as a CUDA graph'
            self.progress.tell_first_steps(what)

    def clip_grad(self):
        """The largest norm of the whole gradient."""
        return self.options.clip_grad

    def clipping(self):
        """What the gradient is clipped to, in words."""
        norm = self.clip_grad()
        return 'not clipped' if norm == float('inf') else f'clipped to norm {norm:g}'

    def note_result(self, step, loss, norm, finite, stop, save):
        """Note what a step came to, as `train_step` returns it; whether to interrupt the steps."""
        self.progress.add(step, loss, norm, finite)
        self.session.heartbeat.step = step
        self.stop_requested |= stop > 0
        self.save_requested |= save > 0
        return stop > 0 or save > 0 or self.progress.is_lost

    def look(self, seconds):
        """Tell of the steps since the last look, which took so many seconds."""
        self.progress.look(seconds, self.session.waits.taken())
        self.session.tend_writer()

    # -- saving, stopping, giving up -------------------------------------------------------------------------

    def save(self, step):
        """Write a checkpoint beside the training."""
        self.share_unreadable()
        self.session.save(step, self.checkpoint)
        self.save_requested = False

    def share_unreadable(self):
        """Have all ranks know the names of all unreadable images. Each name is sent once: there may be very many."""
        self.unreadable |= self.ranks.union(self.unreadable - self.known_to_all)
        self.known_to_all = set(self.unreadable)

    def checkpoint(self):
        """All that a checkpoint holds but its version and step, in copies that training does not change."""
        run, progress = self.run, self.progress
        return {'sums': list(progress.sums), 'skipped': progress.skipped, 'left_out': run.left_out,
                'ended_at': run.ended_at, 'first_warmup': run.first_warmup, 'images': run.images,
                'fingerprint': run.fingerprint, 'unreadable': sorted(self.unreadable),
                'accum': self.accum, 'ranks': self.ranks.size, 'compiled': self.compiled.is_wanted,
                'config': self.options.as_dict(),
                'optimizer': copied(self.optimizer.state_dict()),
                **({'scaler': copied(self.scaler.state_dict())} if self.scaler else {}),
                **self.checkpoint_content(), **self.facts()}

    def stop(self, step):
        """Save after a request to stop, and raise Stopped."""
        self.save(step)
        who = self.session.stop.asked or 'a signal to another rank'
        self.session.end(STOP_PATIENCE, f'stopped by {who} after step {step:,}, but that state could not be '
                                        'saved: the same '
                         'command goes on from the last checkpoint')
        raise Stopped(f'stopped by {who} after step {step:,}, which is saved: the same command goes on from '
                      'there')

    def give_up(self, epoch):
        """Raise NotFinite after too many steps in a row that were not finite.

        The state before them is saved, unless the run will rewind.
        """
        bad = self.progress.bad
        steps = range(bad[0][0], bad[-1][0] + 1)
        message = self.progress.describe_bad(bad)
        if self.options.rewind:  # all ranks read the same checkpoint, once it is written
            if self.session.writer:
                self.session.writer.close(STOP_PATIENCE)
            if self.session.asked_to_stop():
                raise Stopped('stopped by a signal while it went back: the same command goes on from the '
                              'last checkpoint')
        else:
            # they changed nothing: this is the state before them
            since = max(steps.start, epoch * self.run.per_epoch)
            self.progress.skipped -= sum(step >= since for step, *_ in bad)
            self.save(since)
            self.session.end(STOP_PATIENCE, f'{message}. The state before them could not be saved')
            message += (f'. They changed nothing, and the state at step {since:,} is saved. Go on from it '
                        'with a lower rate (--lr or --base_lr), clipping (--clip) or --precision=fp32, or '
                        'without these images: --rewind. If the loss had grown for long before, that state is no '
                        'good either: start over with a lower rate, --fresh --lr')
        raise NotFinite(message, steps)


def train_step(model, batches, accum, optimizer, guard, ranks, autocast, clip_grad, requests, scaler=None):
    """One optimiser step on the next `accum` of the batches, of equal size.

    model(*batch) returns the loss; batches yields its arguments, on the device: this rank's images (B /
    accum, C, H, W) and what belongs to them. autocast() is the context of the forward pass. requests() is
    (2,) on the device, not 0 where this rank wants to stop, or to save. scaler: a LossScaler in fp16.

    Nothing is read on the host, and what lasts longer than the step is changed in place.

    Returns (loss, gradient norm before clipping, 1 if finite, ranks that want to stop, ranks that want to
    save), (5,) on the device. Whether the step is finite is decided on the device, the same on all ranks; if
    it is not, it changes nothing.
    """
    before = guard.snapshot()
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=ranks.device)
    for part, batch in enumerate(islice(batches, accum)):
        alone = part + 1 < accum and hasattr(model, 'no_sync')  # gradients meet after the last part only
        with model.no_sync() if alone else nullcontext():
            with autocast():
                loss = model(*batch) / accum
            (scaler.scaled(loss) if scaler else loss).backward()
        total += loss.detach()
    trained = [p for p in model.parameters() if p.grad is not None]
    if scaler:
        scaler.unscale([p.grad for p in trained])
    norm = torch.nn.utils.clip_grad_norm_(trained, clip_grad)
    is_bad = (~torch.isfinite(total + norm)).float()
    reduced = ranks.all_reduce(torch.cat([torch.stack([total, is_bad]), requests()]))
    skip = reduced[1] > 0
    optimizer.found_inf = skip.float()  # torch's protocol by which an optimiser leaves a step out
    optimizer.grad_scale = None
    optimizer.step()
    guard.restore(before, skip)
    if scaler:
        scaler.update(skip.float())
    return torch.cat([torch.stack([reduced[0] / ranks.size, norm.float(), 1 - skip.float()]), reduced[2:]])
