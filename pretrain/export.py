"""Write a pretrained or fine-tuned network for whoever uses it next, and read it back as they do before calling it written.

    python -m pretrain.export output_my_run --to=timm                    # resnet50_timm.safetensors
    python -m pretrain.export output_my_run --to=hf --licence=mit        # a folder for timm's local-dir: or a model hub
    python -m pretrain.export output_my_tune/resnet50_1kfinetuned_best.pth --to=onnx     # logits too

Formats: timm, torchvision, official, detectron2, mmdet, hf, onnx. A trained classifier goes with the network where the format
has a place for it; one that was not trained does not. A file is not kept, and the command says why, if its reader does not give
the network's own output, or if its entries are not those of the file that it was made from, bit by bit.
"""
import argparse
import importlib.util
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import safetensors.torch
import timm
import torch
import torchvision
from timm.models import save_for_hf
from torch import nn

from common.cli import errors_in_one_sentence, expanded, needs, reader_may_leave
from common.networks.guess import guess_model
from common.networks.load import load_strictly
from common.networks.renaming import to_timm, to_torchvision
from common.reliability.checkpoint import read_plain, save, write_atomically
from common.words import counted, number_and_first_of
from pretrain.arguments import add_network, network_of
from pretrain.results.card import write_card
from pretrain.saved import untrained_spark
from pretrain.spark_weights import load_official, official_encoder, official_whole
from pretrain.sparse.compare import error

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # largest relative difference of features in fp32, which another order of summing brings about
TORCHVISION = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'resnext101_32x8d',
               'resnext101_64x4d', 'wide_resnet50_2', 'wide_resnet101_2', 'convnext_tiny', 'convnext_small', 'convnext_base',
               'convnext_large', 'densenet121', 'densenet161', 'densenet169', 'densenet201')  # layer for layer timm's


def export(saved, to, out, suffix='.safetensors', licence=None):
    """Write a Saved network in the format `to` into the folder out, once it was read back and is the same.

    suffix: '.safetensors' or '.pth', where a format leaves the choice. Returns sentences on what was written and how it was
    checked. Raises ValueError, and leaves what was there, if the network has no such form or does not come back as it was.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name = saved.model.split('.')[0]
    if to == 'hf' and (out / f'{name}_hf').exists():
        raise ValueError(f'{out / f"{name}_hf"} is there already: move it away, or give another --out')
    with tempfile.TemporaryDirectory(dir=out, prefix='.export') as folder:
        sentences = WRITERS[to](saved, Path(folder).resolve() / f'{name}_{to}', suffix, licence)
        for path in Path(folder).iterdir():
            path.replace(out / path.name)
    return [*sentences, *remarks(saved, to), f'Written to {out}']


def write_state(path, state):
    if path.suffix == '.safetensors':
        write_atomically(path, lambda file: file.write(safetensors.torch.save(state, metadata={'format': 'pt'})))
    else:
        save(path, state)


@torch.no_grad()
def require_same(ours, theirs, reader):
    """Raise a ValueError unless two lists of tensors are alike."""
    difference = error(theirs, ours)
    if not difference <= TOLERANCE:
        raise ValueError(f'{reader} does not give the network\'s own output from what was written (relative difference '
                         f'{difference:.1e})')


def some_images(saved):
    return torch.randn(2, saved.options.in_chans, *saved.spark.encoder.input_size, generator=torch.Generator().manual_seed(0))


def entries_of(saved, classifier=True):
    """{key: tensor} that an export holds: what the file has for the network, under timm's names, in the file's precision.

    Without the classifier if the file has no trained one, or if it is not wanted.
    """
    keeps = classifier and saved.has_classifier
    return {key: value.contiguous() for key, value in saved.weights.items() if keeps or key not in saved.head}


def require_given(saved, written, reader, classifier=True):
    """Raise a ValueError unless entries under timm's names, read back, are those of the given file, bit by bit."""
    given = entries_of(saved, classifier)
    wrong = [key for key in given.keys() | written.keys() if key not in given or key not in written
             or not torch.equal(written[key], given[key].to(written[key].dtype))]
    if wrong:
        raise ValueError(f'{reader} does not give the network\'s own entries from what was written: '
                         f'{number_and_first_of(sorted(wrong))} are not as in {saved.path}')


def remarks(saved, to):
    """Sentences on what of the given file is not in an export, and on what in it was not trained."""
    head = [key for key in saved.head if key in saved.weights]
    if saved.has_classifier and to in WITH_CLASSIFIER:
        yield f'The trained classifier is in it: {classes_of(saved)["num_classes"]} classes, {", ".join(head)}'
    elif saved.has_classifier:
        yield f'The trained classifier ({", ".join(head)}) is left out: --to={to} is for an encoder'
    elif head and saved.is_encoder:
        yield f'It has no classifier: that of the given file ({", ".join(head)}) was not trained, and is left out'
    elif head:
        yield (f'It has no classifier: the given file has {", ".join(head)}, but not all that it needs '
               f'({number_and_first_of(saved.loaded.missing)} are missing)')
    else:
        yield 'It has no classifier: the given file has none'
    idle = [key for key in saved.spark.encoder.unused if key in saved.weights and key not in saved.head]
    if idle and saved.is_encoder and to in ('timm', 'torchvision', 'hf'):
        yield (f'{number_and_first_of(idle)} are as in the given file; pretraining does not train them, and the features '
               'do not depend on them')


def classes_of(saved):
    """How many classes an export tells apart, as an argument of timm's networks: 0 without a classifier."""
    if not saved.head:
        return {}  # a network without a classifier may take no such argument
    return {'num_classes': saved.weights[saved.head[0]].shape[0] if saved.has_classifier else 0}


def create(saved, **more):
    """The network anew, untrained, with as many classes as an export unless told otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Initializing zero-element tensors')  # a linear layer of no classes
        return timm.create_model(saved.model.split('.')[0], **{**arguments_of(saved), **more})


def arguments_of(saved):
    channels = {} if saved.options.in_chans == 3 else {'in_chans': saved.options.in_chans}
    return {**classes_of(saved), **channels}


def lacking(network, state):
    """Names of the entries of a network that a state_dict lacks."""
    return [key for key in network.state_dict() if key not in state and not key.endswith('num_batches_tracked')]


@torch.no_grad()
def require_same_network(saved, theirs, reader):
    """Raise a ValueError unless a timm network gives the features of the given one, and the logits if it has a classifier."""
    encoder, images = saved.spark.encoder, some_images(saved)
    require_same(encoder.pyramid(images), encoder.pyramid(images, cnn=theirs.eval()), reader)
    if saved.has_classifier:
        require_same([encoder.cnn(images)], [theirs(images)], reader)


def what_is_same(saved):
    return 'the same output' if saved.has_classifier else 'the same features'


def to_timm_file(saved, stem, suffix, _):
    path, state = stem.with_suffix(suffix), entries_of(saved)
    theirs = create(saved)
    state |= {key: value for key, value in theirs.state_dict().items() if not value.numel()}  # a layer of no classes
    write_state(path, state)
    made = ', '.join([repr(saved.model.split('.')[0]), *(f'{name}={value}' for name, value in arguments_of(saved).items())])
    drawn = lacking(theirs, state)
    if drawn:
        timm.models.load_checkpoint(theirs, str(path), strict=False)
        line = f"timm.models.load_checkpoint(timm.create_model({made}), '{path.name}', strict=False)"
        how = f'not strictly: the given file lacks {number_and_first_of(drawn)}, which stay as timm initialises them'
    else:
        theirs = create(saved, checkpoint_path=str(path))
        line, how = f"timm.create_model({made}, checkpoint_path='{path.name}')", 'strictly'
    require_given(saved, {key: value for key, value in read_plain(path).items() if value.numel()}, 'timm')
    given = {key: value for key, value in theirs.state_dict().items() if key in saved.weights and value.numel()}
    require_given(saved, given, 'timm')
    require_same_network(saved, theirs, 'timm')
    return [f'{path.name}: read by {line}, {how}; {what_is_same(saved)}']


@torch.no_grad()
def to_torchvision_file(saved, stem, suffix, _):
    name = saved.model.split('.')[0]
    if name not in TORCHVISION or saved.options.in_chans != 3:
        raise ValueError(f'torchvision has no {name} for images of {counted(saved.options.in_chans, "channel")} with the '
                         'same layers as '
                         f'timm\'s; it has {", ".join(TORCHVISION)}, for 3')
    path, encoder, images = stem.with_suffix(suffix), saved.spark.encoder, some_images(saved)
    write_state(path, to_torchvision(entries_of(saved)))
    state = read_plain(path)
    if saved.has_classifier:
        number = classes_of(saved)['num_classes']
        theirs, instead = torchvision.models.get_model(name, num_classes=number), ''
        made, ours = f'{name}(num_classes={number})', encoder.cnn(images)
    else:
        theirs, made, ours = torchvision.models.get_model(name), f'{name}()', encoder.pyramid(images)[-1].mean((2, 3))
        last = [key.rpartition('.')[0] for key in theirs.state_dict()][-1]
        if 'classifier.0.weight' in state:  # a norm in front of the classifier of a ConvNeXt
            norm = state['classifier.0.weight'], state['classifier.0.bias'], 1e-6
            ours = nn.functional.layer_norm(ours, ours.shape[1:], *norm)
        elif last == 'classifier.2':
            last = 'classifier'
        theirs.set_submodule(last, nn.Flatten())
        instead = f" with model.set_submodule('{last}', torch.nn.Flatten())"
    theirs.load_state_dict(state)
    require_given(saved, to_timm(state, encoder.cnn), 'torchvision')
    require_given(saved, to_timm({key: value for key, value in theirs.state_dict().items() if key in state}, encoder.cnn),
                  'torchvision')
    require_same([ours], [theirs.eval()(images)], 'torchvision')
    return [f'{path.name}: read by model = torchvision.models.{made}{instead}, strictly; {what_is_same(saved)}']


@torch.no_grad()
def to_official_files(saved, stem, suffix, _):
    """The encoder in the style of the published files, and the whole SparK where its decoder is theirs; always .pth."""
    encoder, state = saved.spark.encoder, entries_of(saved, classifier=False)
    if guess_model(state) != saved.model.split('.')[0]:
        raise ValueError(f'the official code knows plain ResNets and ConvNeXts, not {saved.model}')
    style = 'official' if any(key.startswith('stages.') for key in state) else 'timm'
    features, images, sentences = official_encoder(state), some_images(saved), []
    name = stem.name.removesuffix('_official')
    path = stem.with_name(f'{name}_1kpretrained_{style}_style.pth')
    save(path, features)
    theirs = create(saved)
    back = to_timm(read_plain(path), theirs)
    load_strictly(theirs, back, may_miss=encoder.unused)
    outside = [key for key in state if key.startswith('head.')]  # a norm in front of the classifier
    require_given(saved, back | {key: state[key] for key in outside}, 'our reader of official files', classifier=False)
    require_same(encoder(images), encoder.pyramid(images, cnn=theirs.eval()), 'our reader of official files')
    sentences.append(f'{path.name}: the encoder; read by our reader of official files: the same features')
    if saved.has_decoder and saved.options.decoder != 'unet':
        sentences.append('no file with the decoder: the official code has no light one')
    elif saved.has_decoder and saved.options.target != 'normalised':
        sentences.append('no file with the decoder: this one predicts pixels, and the official code would take them for '
                         'normalised cells')
    elif saved.has_decoder:
        path = stem.with_name(f'{name}_withdecoder_1kpretrained_spark_style.pth')
        save(path, official_whole(saved.spark, features, saved.options.normalisation))
        again, visible = untrained_spark(saved.options).eval(), saved.spark.draw_visible(2, torch.Generator().manual_seed(0))
        load_official(read_plain(path), again)
        require_same([saved.spark.predict(images, visible)], [again.predict(images, visible)], 'our reader of official files')
        sentences.append(f'{path.name}: encoder and decoder; read by our reader of official files: the same reconstruction')
    return sentences + ['Names and shapes are the official ones; the official program itself was not run']


def run_reader(*command):
    """Run a program of one of the downstream folders, with which this one shares files and no code. Raises ValueError."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr or done.stdout).strip().removeprefix('error: '))
    return done.stdout.strip()


class ArraysAlone(pickle.Unpickler):
    """Reads a pickle of plain data and NumPy's arrays. What names anything else, which could run code, is refused."""

    def find_class(self, module, name):
        if not re.fullmatch(r'numpy(\._?core\.(multiarray|numeric))?', module) or \
                name not in ('ndarray', 'dtype', '_reconstruct', '_frombuffer'):
            raise ValueError(f'the file holds {module}.{name} besides arrays')
        return super().find_class(module, name)


@torch.no_grad()
def to_detectron2_file(saved, stem, suffix, _):
    path, state = stem.with_suffix('.pkl'), entries_of(saved, classifier=False)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, 'weights.pth'), state)
        run_reader('downstream_d2/convert-timm-to-d2.py', Path(folder, 'weights.pth'), path)
    with open(path, 'rb') as file:
        entries = ArraysAlone(file).load()['model']
    require_given(saved, {timm_key(key): torch.from_numpy(value) for key, value in entries.items()}, 'Detectron2', False)
    depth = int(guess_model(state).removeprefix('resnet'))
    expected = detectron2_shapes(depth)
    if {key: value.shape for key, value in entries.items()} != expected:
        raise ValueError(f'the file has not the names and shapes of a ResNet-{depth} of Detectron2')
    checked = f'names and shapes are those of its ResNet-{depth}; Detectron2 is not installed here and did not read it'
    if importlib.util.find_spec('detectron2'):
        images = some_images(saved)
        require_same(saved.spark.encoder.pyramid(images), detectron2_features(path, depth, images), 'Detectron2')
        checked = 'read by Detectron2: the same features'
    return [f'{path.name}: {checked}. It is a pickle, which Detectron2 asks for']


def timm_key(key):
    """Detectron2's name of an entry of a ResNet -> timm's."""
    key = re.sub(r'^res(\d)', lambda match: f'layer{int(match[1]) - 1}', key.removeprefix('stem.'))
    key = re.sub(r'\bconv(\d)\.norm', r'bn\1', key)
    return key.replace('shortcut.norm', 'downsample.1').replace('shortcut', 'downsample.0')


def detectron2_shapes(depth):
    """{name: shape} of the backbone of Detectron2's ResNets."""
    def norm(name, channels):
        return {**{f'{name}.{part}': (channels,) for part in ('weight', 'bias', 'running_mean', 'running_var')},
                f'{name}.num_batches_tracked': ()}
    shapes = {'stem.conv1.weight': (64, 3, 7, 7), **norm('stem.conv1.norm', 64)}
    cin = 64
    for stage, (blocks, width) in enumerate(zip({50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth],
                                                (64, 128, 256, 512)), 2):
        for block in range(blocks):
            at = f'res{stage}.{block}'
            convolutions = {'conv1': (width, cin, 1, 1), 'conv2': (width, width, 3, 3), 'conv3': (4 * width, width, 1, 1)}
            if block == 0:
                convolutions['shortcut'] = (4 * width, cin, 1, 1)
            for name, shape in convolutions.items():
                shapes |= {f'{at}.{name}.weight': shape, **norm(f'{at}.{name}.norm', shape[0])}
            cin = 4 * width
    return shapes


def detectron2_features(path, depth, images):
    """The feature maps of Detectron2's own ResNet with a converted file."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone
    cfg = get_cfg()
    cfg.merge_from_list(['MODEL.RESNETS.DEPTH', depth, 'MODEL.RESNETS.STRIDE_IN_1X1', False, 'MODEL.RESNETS.NORM', 'BN',
                         'MODEL.RESNETS.OUT_FEATURES', ['res2', 'res3', 'res4', 'res5'], 'MODEL.BACKBONE.FREEZE_AT', 0])
    holder = nn.Module()
    holder.backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(holder).load(str(path))
    return list(holder.eval().backbone(images).values())


def to_mmdet_file(saved, stem, suffix, _):
    path, name = stem.with_suffix('.pth'), saved.model.split('.')[0]
    if not name.startswith('convnext'):
        raise ValueError(f'downstream_mmdet reads ConvNeXts, not {name}; for any network there is downstream_coco')
    save(path, entries_of(saved, classifier=False))
    require_given(saved, read_plain(path), 'downstream_mmdet', classifier=False)
    said = run_reader('-m', 'downstream_mmdet.weights', path, name)
    return [f'{path.name}: read by downstream_mmdet/weights.py, strictly ({said})']


@torch.no_grad()
def to_hf_folder(saved, stem, suffix, licence):
    folder, images, size = stem, some_images(saved), saved.spark.encoder.input_size
    channels = saved.options.in_chans
    mean, std = saved.options.normalisation
    own = {'paper_name': 'SparK', 'paper_ids': 'arXiv:2301.03580', 'origin_url': None, 'test_input_size': None,
           'test_crop_pct': None, 'file': None, 'pool_size': None}  # not what timm says of its own weights
    number = classes_of(saved).get('num_classes', 0)
    overlay = {**own, 'mean': mean, 'std': std, 'input_size': (channels, *size), 'crop_pct': 1.0, 'num_classes': number,
               'url': '', 'hf_hub_id': None, 'license': licence or 'other', 'tag': 'spark', 'interpolation': 'bicubic'}
    is_named = saved.has_classifier and saved.classes and len(saved.classes) == number
    names = {'label_names': list(saved.classes)} if is_named else {}
    try:
        cnn, state = create(saved, num_classes=number, pretrained_cfg_overlay=overlay), entries_of(saved)
        drawn = [key for key in lacking(cnn, state) if cnn.state_dict()[key].numel()]
        if any(cnn.state_dict()[key].unique().numel() > 1 for key in drawn):
            raise ValueError(f'{saved.path} lacks {number_and_first_of(drawn)}, which a folder for timm has: they would be '
                             'random. Export it with --to=timm')
        load_strictly(cnn, state, may_miss=lacking(cnn, state))
        save_for_hf(cnn, folder, model_config=names, model_args={} if channels == 3 else {'in_chans': channels},
                    safe_serialization=True)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{saved.model} is not built as timm builds its networks (build_model_with_cfg, pretrained_cfg), so '
                         'timm cannot load it from a folder: export it with --to=timm, and give your code with it') from error
    except RuntimeError as error:
        raise ValueError(f'timm {timm.__version__} cannot write it with the huggingface_hub that is installed ({error}): '
                         'install a later timm') from error
    written = read_plain(folder / 'model.safetensors')
    require_given(saved, {key: value for key, value in written.items() if value.numel() and key not in drawn}, 'timm')
    write_card(saved, folder, licence)
    theirs = timm.create_model(f'local-dir:{folder}', pretrained=True)
    require_same([cnn.eval()(images)], [theirs.eval()(images)], 'timm (local-dir:)')
    require_same_network(saved, theirs, 'timm (local-dir:)')
    norms = [f'{number_and_first_of(drawn)}, which the given file lacks, are as timm initialises them: norms that do '
             'nothing'] if drawn else []
    return [f'{folder.name}: read by timm.create_model("local-dir:.../{folder.name}", pretrained=True); '
            f'{what_is_same(saved)}. A hub takes the folder as it is; look at its README.md first', *norms]


class Outputs(nn.Module):
    """What ONNX gets: images -> the feature maps, small stride to large, the mean of the last one, and logits if wanted."""

    def __init__(self, encoder, logits=False):
        super().__init__()
        self.encoder, self.cnn, self.logits = encoder, encoder.cnn, logits

    def forward(self, images):
        levels = self.encoder.pyramid(images)
        logits = (self.cnn(images),) if self.logits else ()  # onnxruntime computes what both share once
        return *levels, levels[-1].mean((2, 3)), *logits


@torch.no_grad()
def to_onnx_file(saved, stem, suffix, _):
    needs('onnx', 'onnxscript', 'onnxruntime')
    import onnxruntime
    path, images = stem.with_suffix('.onnx'), some_images(saved)
    model = Outputs(saved.spark.encoder, saved.has_classifier).eval()
    require_given(saved, {key: value for key, value in saved.spark.encoder.cnn.state_dict().items()
                          if key in entries_of(saved)}, 'the exporter')
    outputs = [*(f'stride_{stride}' for stride in saved.spark.encoder.reductions), 'pooled',
               *['logits'] * saved.has_classifier]
    try:
        torch.onnx.export(model, (images,), str(path), dynamo=True, input_names=['images'], output_names=outputs, verbose=False,
                          dynamic_shapes={'images': {0: torch.export.Dim('batch')}}, external_data=False)
    except Exception as error:  # whatever an exporter can meet in a network
        raise ValueError(f'torch cannot export {saved.model} to ONNX: {type(error).__name__}: '
                         f'{str(error).strip().splitlines()[0]}') from error
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for batch in (images, images[:1], torch.cat([images, images, images[:1]])):
        theirs = [torch.from_numpy(value) for value in session.run(outputs, {'images': batch.numpy()})]
        require_same(list(model(batch)), theirs, 'onnxruntime')
    return [f'{path.name}: run by onnxruntime {onnxruntime.__version__} with batches of 1, 2 and 5 images of '
            f'{" x ".join(map(str, saved.spark.encoder.input_size))}; the same {", ".join(outputs)}']


WITH_CLASSIFIER = ('timm', 'torchvision', 'hf', 'onnx')
WRITERS = {'timm': to_timm_file, 'torchvision': to_torchvision_file, 'official': to_official_files,
           'detectron2': to_detectron2_file, 'mmdet': to_mmdet_file, 'hf': to_hf_folder, 'onnx': to_onnx_file}


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.export', description=__doc__.splitlines()[0], allow_abbrev=False)
    add_network(parser)
    parser.add_argument('--to', required=True, choices=WRITERS, help='who is to read it')
    parser.add_argument('--out', default='.', help='folder to write into (default: this one)')
    parser.add_argument('--pth', action='store_true', help="torch's format instead of safetensors, for timm and torchvision")
    parser.add_argument('--licence', '--license', help='of the weights, for the model card of --to=hf, such as mit')
    args = parser.parse_args(expanded(argv))
    if args.pth and args.to not in ('timm', 'torchvision'):
        parser.error(f'--to={args.to} has one format only: leave --pth away')
    if args.licence and args.to != 'hf':
        parser.error(f'--to={args.to} has no place for a licence: leave --licence away')
    with errors_in_one_sentence():
        suffix = '.pth' if args.pth else '.safetensors'
        for sentence in export(network_of(args), args.to, args.out, suffix, args.licence):
            print(sentence)


if __name__ == '__main__':
    main()
