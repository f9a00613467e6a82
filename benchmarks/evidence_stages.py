"""The questions of benchmarks.evidence, and the stages of training and measuring that answer them.

A stage is one ordinary command, such as `python -m pretrain.main --name=sparse_0 ...`. It is run in the folder of results,
where the images are `photos/train` and `photos/val`.
"""
from dataclasses import dataclass, field, replace

PERCENTS = '10', '1', '100'  # percent of the labels that a fine-tuning has, in the order of the runs
SHARE = {'1': '0.01', '10': '0.1', '100': '1'}
TUNING_SEED = 100
HELD_OUT = 0.2  # share of the training images on which learning rates are compared
ESTIMATED = 'estimated'  # Suffix of measures with BatchNorm statistics that are estimated on whole images.


@dataclass(frozen=True)
class Scale:
    """What is trained, on what, and for how long.

    title: how a page calls the machine, after "On a". device: 'cpu' or 'cuda'.
    network: options that name the network and the machine, of every command. pretraining, fine_tuning: options beside them.
    decoder: options of SparK's decoder.
    epochs: of pretraining. tuned_epochs: {percent of the labels: epochs of fine-tuning}. rates: peak learning rates of
    fine-tuning that are compared.
    """
    name: str
    title: str
    device: str
    model: str
    network: tuple
    pretraining: tuple
    decoder: tuple
    fine_tuning: tuple
    epochs: int
    tuned_epochs: dict
    rates: tuple


FINE_TUNING = ('--ema=0', '--mixup=0', '--cutmix=0', '--erase=0', '--crop_scale=0.35,1', '--layer_decay=1',
               '--val_every=100000')  # Only the last epoch is evaluated.
CPU = Scale(
    'cpu', 'CPU', 'cpu', 'small_resnet', network=('--model=small_resnet', '--input_size=80', '--precision=bf16', '--workers=0'),
    pretraining=('--picture_every=0',), decoder=('--decoder_width=96',), fine_tuning=('--batch_size=32', *FINE_TUNING),
    epochs=40, tuned_epochs={'1': 300, '10': 100, '100': 20}, rates=('1e-3', '3e-3', '1e-2', '3e-2'))
SCALES = {scale.name: scale for scale in (
    CPU,
    # For CPUs that have no instructions for bf16. Its results are not mixed with those in bf16.
    replace(CPU, name='cpu_fp32', title='CPU, in fp32', network=tuple(word.replace('=bf16', '=fp32') for word in CPU.network)),
    # For a GPU that is lent for minutes: neither compilation, nor checkpoints on the way.
    Scale(
        'cuda', 'GPU', 'cuda', 'resnet50', network=('--model=resnet50', '--input_size=128', '--precision=bf16', '--workers=6'),
        pretraining=('--batch_size=256', '--picture_every=0', '--compile=False', '--save_every=100000', '--keep=1'), decoder=(),
        fine_tuning=('--batch_size=64', '--compile=False', '--save_every=100000', '--keep=1', *FINE_TUNING),
        epochs=80, tuned_epochs={'1': 100, '10': 50, '100': 10}, rates=('1e-3', '3e-3', '1e-2', '3e-2')))}


@dataclass(frozen=True)
class Start:
    """The weights from which fine-tuning starts.

    label: how a page calls it. question: the letter of the question that asks for it.
    pretrained: whether there is a pretraining. ablation: of benchmarks.ablations, if it has one.
    percents: the shares of the labels, in percent, with which it is fine-tuned.
    options: of the pretraining, beside the scale's. length: its epochs, as a multiple of the scale's.
    equal_time: (the start whose pretraining time is matched, the start that shows the time of an epoch), or empty.
    tuned_as: the start whose learning rates it takes; its own if None. has_decoder: whether SparK's decoder is trained.
    takes_all_time: whether its fine-tuning takes the time of SparK's pretraining and fine-tuning together.
    """
    name: str
    label: str
    question: str
    pretrained: bool = True
    ablation: str = None
    options: tuple = ()
    length: float = 1.0
    equal_time: tuple = ()
    tuned_as: str = None
    percents: tuple = PERCENTS[:1]
    has_decoder: bool = True
    takes_all_time: bool = False

    @property
    def held_out(self):
        """The share of the training images that pretraining does not see."""
        shares = [float(word.partition('=')[2]) for word in self.options if word.startswith('--val_fraction=')]
        return shares[0] if shares else 0.0

    @property
    def rates_of(self):
        return self.tuned_as or self.name


@dataclass(frozen=True)
class Question:
    """What is asked, what was expected before the runs, and which pairs of starts answer it.

    pairs: (start that is expected to be better, the other).
    beside: pairs that are shown in the section of the question, and do not answer it.
    """
    text: str
    hypothesis: str
    pairs: tuple
    beside: tuple = ()


STARTS = {start.name: start for start in (
    Start('scratch', 'random weights', 'a', pretrained=False, percents=PERCENTS),
    Start('sparse', 'SparK', 'a', percents=PERCENTS),
    Start('zeroed', 'hidden pixels zeroed, dense network; equal epochs', 'b', ablation='zeroed', percents=PERCENTS),
    Start('zeroed_time', 'hidden pixels zeroed, dense network; equal time', 'b', ablation='zeroed',
          equal_time=('sparse', 'zeroed'), tuned_as='zeroed', percents=PERCENTS),
    Start('scratch_long', 'random weights, equal time', 't', pretrained=False, tuned_as='scratch', percents=('10', '100'),
          takes_all_time=True),
    Start('single_level', 'decoder sees the smallest map only', 'c', ablation='single_level'),
    Start('mask_40', 'mask ratio 0.4', 'd', options=('--mask_ratio=0.4',)),
    Start('mask_75', 'mask ratio 0.75', 'd', options=('--mask_ratio=0.75',)),
    Start('a2mim', 'A2MIM, equal epochs', 'e', options=('--method=a2mim',), has_decoder=False),
    Start('quarter', 'a quarter of the epochs', 'f', length=0.25),
    Start('triple', 'three times the epochs', 'f', length=3),
    Start('images_11', 'a ninth of the images, about equal steps', 'f', options=('--val_fraction=0.8889',), length=9),
    Start('images_33', 'a third of the images, about equal steps', 'f', options=('--val_fraction=0.6667',), length=3))}

QUESTIONS = {
    'a': Question(
        'Does pretraining on the unlabelled training images help, against random weights?',
        'Yes.',
        (('sparse', 'scratch'),)),
    'b': Question(
        'Is the sparse encoder better than the dense network on zeroed pixels?',
        'Yes after fine-tuning, as in the paper (section 4.4). The norms of the network on zeroed pixels fit whole images '
        'less well.',
        (('sparse', 'zeroed'), ('sparse', 'zeroed_time')), (('zeroed', 'scratch'),)),
    't': Question(
        'Does pretraining still help if training from random weights gets the time of pretraining and fine-tuning together?',
        'Yes with 10 % of the labels, no with all of them.',
        (('sparse', 'scratch_long'),)),
    'c': Question('Is a decoder that sees all levels better than one that sees the smallest map only?', 'Yes, as in the paper.',
                  (('sparse', 'single_level'),)),
    'd': Question('Is a mask ratio of 0.6 better than 0.4 and 0.75?', 'Yes, as in the paper.',
                  (('sparse', 'mask_40'), ('sparse', 'mask_75'))),
    'e': Question('Is SparK better than A2MIM, at equal epochs? (ConvMAE takes other networks.)',
                  'Yes, as on the drawn fabrics.', (('sparse', 'a2mim'),)),
    'f': Question('Does accuracy grow with the epochs of pretraining, and with its images?', 'Yes, with both.',
                  (('triple', 'sparse'), ('sparse', 'quarter'), ('sparse', 'images_33'), ('images_33', 'images_11')))}


@dataclass(frozen=True)
class Stage:
    """One command.

    kind: 'pretrain', 'tune', 'finetune', 'knn', 'linear' or 'norms'. arguments: of the command, after `python -m`.
    images: how many images it trains on, counted with repetition; or sees, if it does not train.
    needs: the names of stages whose results it reads. epochs: of a training.
    weights: the file of weights that it makes for later stages; empty if it makes none.
    rates: {learning rate: name of the stage that tried it}; the best is added to the arguments.
    equal_time: empty, or (names of the stages whose time this one is to take, names of the stages that show how long it takes
    with `epochs` epochs). Both have the stages of all seeds. The epochs are multiplied by the ratio of both times.
    """
    name: str
    question: str
    kind: str
    arguments: tuple
    images: float
    needs: tuple = ()
    epochs: int = None
    weights: str = ''
    rates: dict = field(default_factory=dict)
    equal_time: tuple = ()

    @property
    def after(self):
        """The names of all stages that must be done before."""
        return {*self.needs, *(name for names in self.equal_time for name in names)}


class Plan:
    """All stages of a scale.

    seeds: how many, of pretraining and fine-tuning. images: in the training folder. percents: the shares of the labels that
    there are fine-tunings with, in the order of the runs.
    """

    def __init__(self, scale, seeds, images, percents=PERCENTS):
        self.scale = scale
        self.seeds = tuple(range(seeds))
        self.images = images
        self.percents = tuple(percents)

    def stages(self, questions=tuple(QUESTIONS)):
        """The stages of some questions, in the order in which they are begun; without any that are there twice."""
        found = {}
        for question in questions:
            for stage in self.of_question(question):
                found.setdefault(stage.name, stage)
        return list(found.values())

    def of_question(self, question):
        """The stages of a question and of (a), with which all are compared; first what tells most for its time.

        A start is pretrained and fine-tuned before the next one, so that what is stopped early has results.
        """
        starts = [start for start in STARTS.values() if start.question in ('a', question)]
        first, *others = self.percents
        for start in starts:
            if start.pretrained:
                yield from (self.pretraining(start, seed) for seed in self.seeds)
            yield from self.fine_tunings(start, first)
        for start in starts:
            for seed in self.seeds:
                yield from self.frozen(start, seed)
        for percent in others:
            for start in starts:
                yield from self.fine_tunings(start, percent)

    def fine_tunings(self, start, percent):
        """The choice of a learning rate and the runs that count, if the start has any with such a share of the labels."""
        if percent in start.percents:
            yield from self.tuning(start, percent)
            yield from (self.final(start, percent, seed) for seed in self.seeds)

    def pretraining(self, start, seed):
        scale = self.scale
        program = ('benchmarks.ablations', start.ablation) if start.ablation else ('pretrain.main',)
        epochs = round(scale.epochs * start.length)
        equal_time = tuple([f'{name}_{each}' for each in self.seeds] for name in start.equal_time)
        name = f'{start.name}_{seed}'
        decoder = scale.decoder if start.has_decoder else ()
        arguments = (*program, f'--name={name}', f'--seed={seed}', '--data_path=photos/train', *scale.network,
                     *scale.pretraining, *decoder, *start.options)
        images = epochs * self.images * (1 - start.held_out)
        return Stage(name, start.question, 'pretrain', arguments, images, epochs=epochs, weights=self.weights_file(name),
                     equal_time=equal_time)

    def weights_file(self, name):
        """The weights that a pretraining makes."""
        return f'output_{name}/{self.scale.model}_1kpretrained.pth'

    def weights(self, start, seed, option):
        """(option with the weights of a start,), (stage that makes them,)."""
        if not start.pretrained:
            return (), ()
        name = f'{start.name}_{seed}'
        return (f'--{option}={self.weights_file(name)}',), (name,)

    def tuning(self, start, percent):
        """Fine-tunings with each of the rates, on a part of the training images, measured on the rest of them."""
        if start.tuned_as:
            return
        weights, needs = self.weights(start, 0, 'finetune_from')
        for rate in self.scale.rates:
            name = f'tune_{percent}_{start.name}_{rate}'
            options = ('--data_path=photos/train', f'--val_fraction={HELD_OUT}', f'--seed={TUNING_SEED}', f'--lr={rate}')
            yield self.fine_tuning(name, start.question, 'tune', percent, (*options, *weights), needs, 1 - HELD_OUT)

    def final(self, start, percent, seed):
        """The fine-tuning that counts, with the best of the rates, measured on the validation images."""
        weights, needs = self.weights(start, seed, 'finetune_from')
        rates = {rate: f'tune_{percent}_{start.rates_of}_{rate}' for rate in self.scale.rates}
        equal_time = ()
        if start.takes_all_time:
            budget = [name for each in self.seeds for name in (f'sparse_{each}', f'final_{percent}_sparse_{each}')]
            equal_time = budget, [f'final_{percent}_{start.rates_of}_{each}' for each in self.seeds]
        options = ('--data_path=photos', f'--seed={seed}', *weights)
        return self.fine_tuning(f'final_{percent}_{start.name}_{seed}', start.question, 'finetune', percent, options,
                                (*needs, *rates.values()), rates=rates, equal_time=equal_time)

    def fine_tuning(self, name, question, kind, percent, options, needs, share=1.0, **more):
        scale = self.scale
        epochs = scale.tuned_epochs[percent]
        arguments = ('downstream_imagenet.main', f'--name={name}', f'--label_fraction={SHARE[percent]}', *scale.network,
                     *scale.fine_tuning, *options)
        images = epochs * self.images * share * float(SHARE[percent])
        return Stage(name, question, kind, arguments, images, needs, epochs, **more)

    def frozen(self, start, seed):
        """Probes of frozen features; for (a) and (b) also with other statistics of BatchNorm."""
        if start.takes_all_time:  # It is fine-tuned for longer than others; before that it is another start.
            return
        yield from self.probes(start, seed, *self.weights(start, seed, 'weights'))
        if start.question in 'ab':
            yield from self.norms(start, seed)

    def probes(self, start, seed, weights, needs, suffix=''):
        for kind in ('knn', 'linear'):
            name = f'{kind}{suffix}_{start.name}_{seed}'
            arguments = (f'downstream_imagenet.{kind}', '--data_path=photos', f'--seed={seed}', *self.scale.network,
                         *(weights or ('--random',)))
            yield Stage(name, start.question, kind, arguments, self.images, needs)

    def norms(self, start, seed):
        """The statistics of BatchNorm, and probes with statistics that are estimated on whole images."""
        weights, needs = self.weights(start, seed, 'weights')
        name = f'norms_{start.name}_{seed}'
        estimated = f'{name}.pth'
        arguments = ('benchmarks.norm_shift', '--data_path=photos', f'--seed={seed}', *self.scale.network,
                     *(weights or ('--random',)), f'--estimated={estimated}', f'--json={name}.json')
        yield Stage(name, start.question, 'norms', arguments, 1024, needs, weights=estimated)
        yield from self.probes(start, seed, (f'--weights={estimated}',), (name,), f'_{ESTIMATED}')
