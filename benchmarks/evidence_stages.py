"""The questions of benchmarks.evidence, and the stages of training and measuring that answer them.

A stage is one ordinary command, such as `python -m pretrain.main --name=sparse_0 ...`. It is run in the folder of results,
where the images are `photos/train` and `photos/val`.
"""
from dataclasses import dataclass, field

LABELS = '10', '1', '100'  # percent of the labels that a fine-tuning has, in the order of the runs
SHARE = {'1': '0.01', '10': '0.1', '100': '1'}
TUNING_SEED = 100
HELD_OUT = 0.2  # share of the training images on which learning rates are compared
ESTIMATED = 'estimated'  # Suffix of measures with BatchNorm statistics that are estimated on whole images.


@dataclass(frozen=True)
class Scale:
    """What is trained, and for how long.

    network: options that name the network and the machine, of every command. pretraining, fine_tuning: options beside them.
    decoder: options of SparK's decoder.
    epochs: of pretraining. tuned_epochs: {percent of the labels: epochs of fine-tuning}. rates: peak learning rates of
    fine-tuning that are compared.
    """
    name: str
    model: str
    network: tuple
    pretraining: tuple
    decoder: tuple
    fine_tuning: tuple
    epochs: int
    tuned_epochs: dict
    rates: tuple


COMMON = ('--ema=0', '--mixup=0', '--cutmix=0', '--erase=0', '--crop_scale=0.35,1', '--layer_decay=1', '--val_every=100000')
SCALES = {
    'cpu': Scale(
        'cpu', 'small_resnet', ('--model=small_resnet', '--input_size=80', '--precision=bf16', '--workers=0'),
        ('--picture_every=0',), ('--decoder_width=96',), ('--batch_size=32', *COMMON), 40, {'1': 300, '10': 100, '100': 20},
        ('3e-3', '1e-2', '3e-2', '1e-1')),
    'cuda': Scale(
        'cuda', 'resnet50', ('--model=resnet50', '--input_size=128', '--precision=bf16'), ('--picture_every=0',), (),
        ('--batch_size=64', *COMMON), 200, {'1': 300, '10': 100, '100': 30}, ('1e-3', '3e-3', '1e-2', '3e-2'))}


@dataclass(frozen=True)
class Start:
    """The weights from which fine-tuning starts.

    name: of the start. words: how a page calls it. question: the letter of the question that asks for it.
    pretrained: whether there is a pretraining. ablation: of benchmarks.ablations, if it has one.
    labels: the shares of the labels, in percent, with which it is fine-tuned.
    options: of the pretraining, beside the scale's. length: its epochs, as a multiple of the scale's.
    as_long_as: (a start whose time the pretraining is to take, a start whose epochs take as long as its own), or empty.
    tuned_as: the start whose learning rates it takes; its own if None. has_decoder: whether SparK's decoder is trained.
    """
    name: str
    words: str
    question: str
    pretrained: bool = True
    ablation: str = None
    options: tuple = ()
    length: float = 1.0
    as_long_as: tuple = ()
    tuned_as: str = None
    labels: tuple = LABELS[:1]
    has_decoder: bool = True

    @property
    def rates_of(self):
        return self.tuned_as or self.name


@dataclass(frozen=True)
class Question:
    """What is asked, what was expected before the runs, and which pairs of starts answer it.

    pairs: (start that is expected to be better, the other).
    """
    text: str
    hypothesis: str
    pairs: tuple


STARTS = {start.name: start for start in (
    Start('scratch', 'random weights', 'a', pretrained=False, labels=LABELS),
    Start('sparse', 'SparK', 'a', labels=LABELS),
    Start('zeroed', 'hidden pixels zeroed, dense network; equal epochs', 'b', ablation='zeroed', labels=LABELS),
    Start('zeroed_time', 'hidden pixels zeroed, dense network; equal time', 'b', ablation='zeroed',
          as_long_as=('sparse', 'zeroed'), tuned_as='zeroed', labels=LABELS),
    Start('scratch_long', 'random weights, equal time', 't', pretrained=False, tuned_as='scratch', labels=('10', '100')),
    Start('single_level', 'decoder sees the smallest map only', 'c', ablation='single_level', tuned_as='sparse'),
    Start('mask_40', 'mask ratio 0.4', 'd', options=('--mask_ratio=0.4',), tuned_as='sparse'),
    Start('mask_75', 'mask ratio 0.75', 'd', options=('--mask_ratio=0.75',), tuned_as='sparse'),
    Start('a2mim', 'A2MIM, equal epochs', 'e', options=('--method=a2mim',), has_decoder=False),
    Start('quarter', 'a quarter of the epochs', 'f', length=0.25, tuned_as='sparse'),
    Start('triple', 'three times the epochs', 'f', length=3, tuned_as='sparse'),
    Start('images_11', 'a ninth of the images, equal steps', 'f', options=('--val_fraction=0.8889',), length=9,
          tuned_as='sparse'),
    Start('images_33', 'a third of the images, equal steps', 'f', options=('--val_fraction=0.6667',), length=3,
          tuned_as='sparse'))}

QUESTIONS = {
    'a': Question(
        'Does pretraining on the unlabelled training images help, against random weights?',
        'Yes, the more the fewer labels there are.',
        (('sparse', 'scratch'),)),
    'b': Question(
        'Is the sparse encoder better than the dense network on zeroed pixels?',
        'Yes after fine-tuning, as in the paper (section 4.4). The norms of the network on zeroed pixels fit whole images '
        'less well.',
        (('sparse', 'zeroed'), ('sparse', 'zeroed_time'))),
    't': Question(
        'Does it help against training from random weights for as long as pretraining and fine-tuning take together?',
        'With few labels yes. With all labels the longer training may close the gap.',
        (('sparse', 'scratch_long'),)),
    'c': Question('Is a decoder that sees all levels better than one that sees the smallest map only?', 'Yes, as in the paper.',
                  (('sparse', 'single_level'),)),
    'd': Question('Which mask ratio is best?', '0.6, as in the paper, or the differences are within the errors.',
                  (('sparse', 'mask_40'), ('sparse', 'mask_75'))),
    'e': Question('Is SparK better than A2MIM, at equal epochs?', 'Yes, as on the drawn fabrics.', (('sparse', 'a2mim'),)),
    'f': Question('Does it grow with epochs, and with unlabelled images?', 'Yes, both.',
                  (('triple', 'sparse'), ('sparse', 'quarter'), ('sparse', 'images_33'), ('images_33', 'images_11')))}


@dataclass(frozen=True)
class Stage:
    """One command.

    kind: 'pretrain', 'tune', 'finetune', 'knn', 'linear' or 'norms'. words: of the command, behind `python -m`.
    images: how many images it trains on, counted with repetition; or sees, if it does not train.
    needs: the names of stages whose results it reads. epochs: of a training.
    rates: {learning rate: name of the stage that tried it}; the best is added to the words.
    time: (names of stages whose time it is to take, name of a stage that is like itself). Its epochs are multiplied by the
    time of the former over the time of the latter.
    """
    name: str
    question: str
    kind: str
    words: tuple
    images: float
    needs: tuple = ()
    epochs: int = None
    rates: dict = field(default_factory=dict)
    time: tuple = ()

    @property
    def after(self):
        """The names of all stages that must be done before."""
        others, twin = self.time or ((), None)
        return {*self.needs, *others, *([twin] if twin else ())}


class Plan:
    """All stages of a scale. seeds: of pretraining and fine-tuning. images: in the training folder."""

    def __init__(self, scale, seeds, images):
        self.scale = scale
        self.seeds = tuple(range(seeds))
        self.images = images

    def stages(self, questions=tuple(QUESTIONS)):
        """The stages of some questions, in the order in which they are begun; without any that are there twice."""
        found = {}
        for question in questions:
            for stage in self.of_question(question):
                found.setdefault(stage.name, stage)
        return list(found.values())

    def of_question(self, question):
        """The stages of a question and of (a), with which all are compared; first what tells most for its time."""
        starts = [start for start in STARTS.values() if start.question in ('a', question)]
        for seed in self.seeds:
            yield from (self.pretraining(start, seed) for start in starts if start.pretrained)
        for percent in LABELS:
            those = [start for start in starts if percent in start.labels]
            for start in those:
                yield from self.tuning(start, percent)
            for seed in self.seeds:
                yield from (self.final(start, percent, seed) for start in those)
            if percent == LABELS[0]:
                for seed in self.seeds:
                    for start in starts:
                        yield from self.frozen(start, seed)

    def pretraining(self, start, seed):
        scale = self.scale
        program = ('benchmarks.ablations', start.ablation) if start.ablation else ('pretrain.main',)
        epochs = round(scale.epochs * start.length)
        time = ()
        if start.as_long_as:
            other, twin = start.as_long_as
            time = (f'{other}_0',), f'{twin}_0'
        name = f'{start.name}_{seed}'
        words = (*program, f'--name={name}', f'--seed={seed}', '--data_path=photos/train', *scale.network, *scale.pretraining,
                 *(scale.decoder if start.has_decoder else ()), *start.options)
        share = 1 - float(next((word.split('=')[1] for word in start.options if 'val_fraction' in word), 0))
        return Stage(name, start.question, 'pretrain', words, epochs * self.images * share, (), epochs, time=time)

    def weights(self, start, seed, option):
        """(option with the weights of a start,), (stage that makes them,)."""
        if not start.pretrained:
            return (), ()
        pretraining = f'{start.name}_{seed}'
        return (f'--{option}=output_{pretraining}/{self.scale.model}_1kpretrained.pth',), (pretraining,)

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
        time = ()
        if start.name == 'scratch_long':
            time = ('sparse_0', f'final_{percent}_sparse_0'), f'final_{percent}_scratch_0'
        options = ('--data_path=photos', f'--seed={seed}', *weights)
        return self.fine_tuning(f'final_{percent}_{start.name}_{seed}', start.question, 'finetune', percent, options,
                                (*needs, *rates.values()), rates=rates, time=time)

    def fine_tuning(self, name, question, kind, percent, options, needs, share=1.0, **more):
        scale = self.scale
        epochs = scale.tuned_epochs[percent]
        words = ('downstream_imagenet.main', f'--name={name}', f'--label_fraction={SHARE[percent]}', *scale.network,
                 *scale.fine_tuning, *options)
        return Stage(name, question, kind, words, epochs * self.images * share * float(SHARE[percent]), needs, epochs, **more)

    def frozen(self, start, seed):
        """Probes of frozen features; for (a) and (b) also with other statistics of BatchNorm."""
        if start.name == 'scratch_long':
            return
        yield from self.probes(start, seed, *self.weights(start, seed, 'weights'))
        if start.question in 'ab' and start.pretrained:
            yield from self.norms(start, seed)

    def probes(self, start, seed, weights, needs, suffix=''):
        for kind in ('knn', 'linear'):
            name = f'{kind}{suffix}_{start.name}_{seed}'
            words = (f'downstream_imagenet.{kind}', '--data_path=photos', f'--seed={seed}', *self.scale.network,
                     *(weights or ('--random',)))
            yield Stage(name, start.question, kind, words, self.images, needs)

    def norms(self, start, seed):
        """The statistics of BatchNorm, and probes with statistics that are estimated on whole images."""
        weights, needs = self.weights(start, seed, 'weights')
        name = f'norms_{start.name}_{seed}'
        estimated = f'{name}.pth'
        words = ('benchmarks.norm_shift', '--data_path=photos', f'--seed={seed}', *self.scale.network, *weights,
                 f'--estimated={estimated}', f'--json={name}.json')
        yield Stage(name, start.question, 'norms', words, 1024, needs)
        yield from self.probes(start, seed, (f'--weights={estimated}',), (name,), f'_{ESTIMATED}')
