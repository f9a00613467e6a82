"""A pretraining run with any method: what `Trainer` (common/training/trainer.py) leaves to its subclasses."""
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from common.images.augmented import Augmented, CentreCrop, RandomCrop, Steps, collate
from common.images.datasets import not_looked_at, whole_of
from common.images.fast_decode import FastDecode
from common.images.files import ImageFiles
from common.images.gpu_decode import DeviceDecoder, EncodedImages, collate_encoded, nvjpeg_on
from common.images.loading import loader, tell_failures, without_failures
from common.networks.origin import with_origin
from common.pictures import as_image
from common.reliability.checkpoint import CannotWrite, plain_state, save
from common.training.compilation import uncompiled
from common.training.device import Normalise, to_device
from common.training.optim import build_optimizer
from common.training.run import Run as BaseRun
from common.training.run import precision_of
from common.training.schedule import Cosine, CosineToFloor, Drop, weight_decay
from common.training.trainer import Trainer
from common.words import counted, described
from pretrain.config import PretrainingOptions
from pretrain.results.pictures import write_picture

PICTURES = 8  # images of which a reconstruction is shown


@dataclass(frozen=True)
class Run(BaseRun):
    """Options, ranks and number of images, and what follows from them. Raises ValueError if they do not fit."""
    options: PretrainingOptions
    curve: Cosine | CosineToFloor | Drop | None = None  # of the learning rate; only a run that trains needs it

    @staticmethod
    def checkpoint_of(options):
        """The path of the newest checkpoint of a run with these options."""
        return Path(options.folder) / f'{options.model}_still_pretraining.pth'

    @property
    def checkpoint(self):
        return self.checkpoint_of(self.options)

    @property
    def exported(self):
        return self.folder / f'{self.options.model}_1kpretrained.pth'

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        options = self.options
        share, floor = self.along(self.curve, step)
        # The weight decay rises to its end once; if the run is given more epochs, it stays there.
        decay = weight_decay(min(step, self.first_end - 1), self.first_end, options.weight_decay, options.last_weight_decay)
        return floor + options.peak_lr * share, decay


class Pretraining(Trainer):
    """Trains a method's network on images without labels, and exports what it pretrained.

    val_images: the held-out images, or None. method: as `Method` in pretrain/methods.py says.
    """
    log_name = 'pretrain_log.txt'
    project = 'spark'
    weights_option = 'init'

    def __init__(self, run, images, val_images, method):
        super().__init__(run, images, val_images)
        self.method = method
        self.record = None  # of the network, see Method
        self.saved_terms = None  # the sums of terms that the next checkpoint holds
        self.normalise = Normalise(run.options.normalisation, run.ranks.device)
        # Asked for at once, so that a machine that cannot do it says so before any work.
        self.nvjpeg = nvjpeg_on(run.ranks.device) if run.options.decode == 'gpu' else None

    @property
    def against_waiting(self):
        faster = ', --decode=fast (in a new run)' if self.options.decode == 'pillow' else ''
        return f'more --workers, as far as there are cores for them{faster}, or tar shards where the storage is slow'

    def build_network(self):
        """The method's network. What takes time to find out about it, the main rank finds out for all of
        them, and once.
        """
        if self.saved:
            self.record = self.saved.get('network')
        built = []  # on the main rank the network

        def build():
            built.append(self.method.build(self.options, self.record))
            return self.method.record(built[0])

        self.record = self.ranks.on_main(build)
        return built[0] if built else self.method.build(self.options, self.record)

    def forward_one_image(self):
        self.network(torch.zeros(1, self.options.in_chans, *self.options.size))

    def load_given_weights(self):
        if not self.options.init:
            return None
        return f'{self.options.init}: {self.method.load_init(self.network, self.options)}'

    def place_network(self):
        self.network = self.network.placed(self.ranks.device)

    def example_batch(self, images):
        shape = images, self.options.in_chans, *self.network.input_size
        example = torch.randn(*shape, device=self.ranks.device).to(memory_format=torch.channels_last)
        return example, self.network.draw_masks(images).to(self.ranks.device)

    def parts_to_compile(self):
        return self.method.parts_to_compile(self.network)

    def build_optimizer(self):
        options = self.options
        groups = self.method.parameter_groups(self.network, options)
        return build_optimizer(options.opt, groups, self.method.betas(self.network, options))

    def connect_ranks(self):
        self.options = self.method.completed(self.options, self.accum, self.ranks)
        self.run = replace(self.run, options=self.options)
        self.method.connect(self.network, self.options, self.run.images_per_rank // self.accum, self.ranks)
        sums = self.method.term_sums(self.network)
        if sums is not None:  # Steps were tried before, for memory and compilation.
            sums.reset(self.saved.get('term_sums') if self.saved and self.ranks.is_main else None)

    def release(self):
        self.method.disconnect(self.network)
        super().release()

    def after_step(self, finite):
        sums = self.method.term_sums(self.network)
        if sums is not None:
            sums.end_step(finite)

    # -- images and masks ------------------------------------------------------------------------------------

    def make_datasets(self):
        options, size = self.options, self.network.input_size
        augmented = {'pillow': Augmented, 'fast': FastDecode, 'gpu': EncodedImages}[options.decode]
        crop = RandomCrop(size, options.crop_scale, options.flip, options.interpolation)
        centre = CentreCrop(size, interpolation=options.interpolation)
        return (augmented(self.images, crop, None, options.seed, timeout=options.read_timeout),
                Augmented(self.images if self.val_images is None else self.val_images, centre, None,
                          timeout=options.read_timeout))

    def make_batches(self):
        options, ranks, run = self.options, self.ranks, self.run
        steps = Steps(len(self.images), options.batch_size, options.epochs, options.seed, self.start, ranks.rank, ranks.size,
                      self.accum, left_out=run.left_out)
        loaded = iter(loader(self.train_dataset, steps, run.workers, ranks.device,
                             collate_encoded if self.nvjpeg else collate))
        read = without_failures(loaded, self.train_dataset, self.unreadable, self.log)
        if self.nvjpeg:
            tell = partial(tell_failures, augmented=self.train_dataset, named=self.unreadable, log=self.log)
            decoder = DeviceDecoder(self.train_dataset, ranks.device, self.nvjpeg, self.log.warn, tell)
            read = ((decoder(encoded), None) for encoded, _ in read)
        return self.masked_batches(read, run.remaining_steps(self.start)), steps

    def masked_batches(self, read, steps):
        """Yield (images, visible) on the device, the arguments of the network: a micro-batch, `accum` of them for each step.

        read: yields (images (micro-batch, C, H, W) as they were loaded, None).
        """
        for step in steps:
            for visible in self.draw_masks(step).chunk(self.accum):
                images, _ = next(read)
                yield self.normalise(images), to_device(visible, self.ranks.device)

    def draw_masks(self, step):
        """This rank's rows of the visible cells of a step's whole batch: LongTensor (batch_size / ranks, k), or (..., n, k)
        for n masks an image, in the order in which Steps has its images.
        """
        batch = self.options.batch_size
        rows = torch.arange(batch).view(self.accum, self.ranks.size, -1)[:, self.ranks.rank].flatten()
        return self.network.draw_masks(batch, self.run.generator('mask', step), rows)

    # -- what is measured and shown --------------------------------------------------------------------------

    def before_training(self):
        """Record the held-out loss of the untrained network, where there are held-out images. Returns False if the run was
        asked to stop meanwhile.
        """
        val_loss = self.held_out_loss()
        if self.session.asked_to_stop():
            return False
        if val_loss is not None:
            self.progress.status.measured = f'held-out {val_loss:.4f}', 0
            self.log.record({'epoch': 0, 'step': 0, 'val_loss': val_loss})
            self.log.scalars({'val_loss': val_loss}, 0)
            self.log.say(f'Before training the held-out loss is {val_loss:.4f}.')
        return True

    def evaluate_epoch(self, epoch, is_last):
        val_loss = self.held_out_loss() if is_last or epoch % self.options.val_every == 0 else None
        if self.session.asked_to_stop():
            return None
        metrics = self.method.metrics(self.network, self.terms_of_all_ranks())
        sums = self.method.term_sums(self.network)
        if sums is not None:
            sums.reset()
        return {'val_loss': val_loss, **metrics}, '' if val_loss is None else f'held-out {val_loss:.4f}'

    def terms_of_all_ranks(self):
        """The method's `term_sums`, added up over all ranks, as a list; None if it has none."""
        sums = self.method.term_sums(self.network)
        if sums is None:
            return None
        # They are on the CPU until the first step, where NCCL cannot add them up.
        return self.ranks.all_reduce(sums.totals.to(self.ranks.device, copy=True)).tolist()

    @torch.no_grad()
    def held_out_loss(self):
        """The mean loss over the held-out images, each counted once; the same on all ranks. None if there are none.

        The value is meaningless if the run was asked to stop meanwhile.
        """
        if self.val_images is None:
            return None
        ranks, network, part = self.ranks, self.network, self.run.images_per_rank // self.accum
        mine = range(ranks.rank, len(self.val_images), ranks.size)
        places = [mine[i:i + part] for i in range(0, len(mine), part)]
        rows = slice(ranks.rank, None, ranks.size)
        visible = network.draw_visible(len(self.val_images), self.run.generator('held-out'), rows)
        loaded = loader(self.val_dataset, [[(0, place) for place in each] for each in places], self.run.workers, ranks.device)
        # without sync_bn the running statistics of the ranks differ: rank 0's are saved
        ranks.broadcast(network.buffers())
        network.eval()
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        read = without_failures(loaded, self.val_dataset, self.unreadable, self.log)
        with self.log.line.counting('held-out images', len(self.val_images)) as count:
            for (images, _), cells in zip(read, visible.split(part)):
                with self.run.autocast(), uncompiled():
                    loss = self.method.held_out_loss(network, self.normalise(images),
                                                     to_device(cells, ranks.device))
                total += loss.double() * len(images)
                count.add(len(images) * ranks.size)
                if not self.session.go_on():
                    break
        network.train()
        return ranks.all_reduce(total).item() / len(self.val_images)

    def after_epoch(self, epoch, is_last):
        every = self.options.picture_every
        if every and (is_last or epoch % every == 0):
            with self.log.line.counting('reconstructions'):
                self.show_pictures(epoch)
        if is_last:
            state = with_origin(plain_state(self.method.exported(self.network)), self.method.name)
            self.session.put(self.run.exported, lambda: save(self.run.exported, state))

    def show_pictures(self, epoch):
        """Write what the network makes of a few images, the same with the same masks every time, as PNG and
        to TensorBoard.
        """
        places = torch.linspace(0, len(self.val_dataset) - 1, min(PICTURES, len(self.val_dataset))).long().tolist()
        images = self.normalise(collate([self.val_dataset[(0, place)] for place in places])[0])
        visible = self.network.draw_visible(len(images), self.run.generator('picture')).to(images.device)
        self.network.eval()
        with self.run.autocast(), uncompiled():
            picture, caption = self.method.picture(self.network, images, visible, self.options.normalisation)
        self.network.train()
        path = self.run.folder / 'reconstructions' / f'epoch_{epoch:04}.png'
        try:
            path.parent.mkdir(exist_ok=True)
            write_picture(path, as_image(picture))
        except (OSError, CannotWrite) as error:
            self.log.warn(f'{error}. The run goes on without this picture')
        self.log.picture(caption, picture, epoch * self.run.per_epoch)

    def save(self, step):
        self.saved_terms = self.terms_of_all_ranks()  # The content of a checkpoint is asked of the main rank alone.
        super().save(step)

    def checkpoint_content(self):
        terms = {} if self.saved_terms is None else {'term_sums': self.saved_terms}
        return {'model': plain_state(self.network), 'network': self.record, **terms}

    # -- what is said ----------------------------------------------------------------------------------------

    def describe(self):
        options, run = self.options, self.run
        held_out = 'none held out (--val_fraction=0.1 holds some out)'
        if self.val_images is not None:
            held_out = f'{len(self.val_images):,} held out'
        if options.val_fraction is not None:
            held_out = f'{len(self.val_images):,} more of it held out (--val_fraction={options.val_fraction:g})'
        elif isinstance(self.val_images, ImageFiles) and self.val_images.root.name != 'val':
            held_out += f' ({self.val_images.root})'
        warmup = f"{counted(options.warmup, 'epoch')}, {counted(run.warmup_steps, 'step')}"
        if options.warmup_epochs is None:
            most, times = options.published_warmup, options.epochs_per_warmup
            part = {10: 'a tenth', 5: 'a fifth'}[times]
            warmup += f' (not given: {most:g}, or {part} of fewer than {times * most:g})'
        if run.ended_at:
            warmup = counted(run.warmup_of(self.start), 'step')
        decay = ' to '.join(dict.fromkeys([f'{options.weight_decay}', f'{options.last_weight_decay}']))
        departures = self.method.departures(options, precision_of(options, self.ranks))
        whole = whole_of(self.images)
        where = getattr(whole, 'root', type(whole).__name__)
        return described([
            *self.method.describe(self.network, options),
            ('recipe', run.recipe),
            ('images', f'{run.images:,} of {where}, {held_out}'),
            ('', not_looked_at(self.images, self.val_images, 'held-out')),
            ('steps', f'{run.per_epoch:,} an epoch, {run.steps:,} in {counted(options.epochs, "epoch")}'),
            ('batch', run.batch(self.accum)),
            ('optimiser', f'{options.opt}, beta2 {self.method.betas(self.network, options)[1]}, gradient {self.clipping()}'),
            ('rates', f'learning rate up to {options.peak_lr:.3g}; weight decay {decay}'),
            ('warm-up', warmup),
            ('precision', run.precision),
            *zip(['departures', *[' '] * len(departures)], departures),
            *self.surroundings(),
        ])

    def warnings(self):
        options, saved = self.options, self.saved
        if self.compiled.is_on and self.network.uncompiled:
            yield ('only the decoder is compiled: this network pads in its forward, has a rule of its own (on_plane), '
                   'or is read by hooks (levels), which torch.compile hides from the rules of the encoder')
        if saved and options.init and options.init != saved['config']['init']:
            yield f'--init={options.init} is not used: the run goes on from {saved["path"]}'
        yield from super().warnings()
        if not saved:
            yield from self.method.warnings(self.network, options)
        advised = self.method.recipe.advised_rate(options, self.run.images)
        is_papers = options.recipe == 'paper' and options.lr is None
        if advised and not is_papers and not advised / 4 <= options.peak_lr <= advised * 4:
            what = 'at a rate so far below that, little is learned'
            if options.peak_lr > advised:
                what = f'with {options.peak_lr / advised:,.0f} times as much the loss will hardly fall, or becomes NaN'
            yield (f'the learning rate goes up to {options.peak_lr:.2g}; for {counted(self.run.steps, "step")} about '
                   f'{advised:g} is advised (--lr={advised:g}): {what}')

    def summary(self):
        run, model = self.run, self.options.model
        return (f'Finished. The pretrained {model} is in {run.exported}\n'
                f'  pictures   python -m pretrain.reconstruct {run.folder} DIR\n'
                f'  curves     python -m pretrain.report {run.folder}\n'
                f'  fine-tune  bash downstream_imagenet/main.sh NAME --data_path=DIR --model={model} '
                f'--finetune_from={run.exported}')
