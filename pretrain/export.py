"""Write a pretrained or fine-tuned network for whoever uses it next.

    python -m pretrain.export output_my_run --to=timm                # output_my_run/export/resnet50_timm.safetensors
    python -m pretrain.export output_my_run --to=hf --licence=mit    # a folder for timm, or a model hub
    python -m pretrain.export output_my_tune/resnet50_1kfinetuned_best.pth --to=onnx     # logits too

Files are written into the folder `export` beside the given file, unless --out names another folder.

Formats: timm, torchvision, official, detectron2, mmdet, hf, onnx; each is a file in pretrain/formats. A
trained classifier goes with the network where the format has a place for it; one that was not trained does
not. What is written is read back by whom it is for. It is not kept, and the command says why, if the reader
does not give the network's own output, or if the entries are not those of the given file, bit by bit.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
import tempfile
from pathlib import Path

from common.cli import errors_in_one_sentence, expanded, folder_for, reader_may_leave
from common.networks.create import module_of
from common.words import number_and_first_of
from pretrain.arguments import add_network, network_of
from pretrain.formats import (
    contents,
    to_detectron2,
    to_hf,
    to_mmdet,
    to_official,
    to_onnx,
    to_timm,
    to_torchvision,
)
from pretrain.results.card import licence_identifier

# A writer is a function (saved, stem, suffix, licence): it writes `stem` with a suffix, reads it back as its
# users do, and returns sentences on what was written, by its path, and how it was checked. It raises ValueError
# if the network has no such form, or does not come back as it was. suffix: '.safetensors' or '.pth', where the
# format leaves the choice. licence: of the weights, for formats that have a place for it, or None.
WRITERS = {'timm': to_timm.write, 'torchvision': to_torchvision.write, 'official': to_official.write,
           'detectron2': to_detectron2.write, 'mmdet': to_mmdet.write, 'hf': to_hf.write,
           'onnx': to_onnx.write}
WITH_CLASSIFIER = ('timm', 'torchvision', 'hf', 'onnx')  # formats that have a place for one


def export(saved, to, out, suffix='.safetensors', licence=None):
    """Write a network in a format, once it was read back and is the same.

    Args:
        saved: of `read_saved`.
        to: the format, one of WRITERS.
        out: the folder to write into.
        suffix: see WRITERS.
        licence: of the weights, an identifier such as mit, or None.

    Returns sentences on what was written and how it was checked. Raises ValueError, and leaves what was
    there, if the network has no such form or does not come back as it was.
    """
    licence = licence_identifier(licence)
    out = folder_for(out)
    name = contents.name_of(saved)
    if to == 'hf' and (out / f'{name}_hf').exists():
        raise ValueError(f'{out / f"{name}_hf"} is there already: move it away, or give another --out')
    with tempfile.TemporaryDirectory(dir=out, prefix='.export') as folder:
        folder = Path(folder).resolve()
        sentences = WRITERS[to](saved, folder / f'{name}_{to}', suffix, licence)
        written = sorted(path.name for path in folder.iterdir())
        for name in written:
            (folder / name).replace(out / name)
    sentences = [sentence.replace(str(folder), str(out)) for sentence in sentences]
    if licence and not (to in ('hf', 'onnx') or suffix == '.safetensors' and to in ('timm', 'torchvision')):
        sentences.append(f'The licence, {licence}, is not in it: the format has no place for one. Put a file '
                         'LICENSE beside it')
    where = ', '.join(str(out / name) for name in written)
    return [*sentences, *remarks(saved, to), f'Written: {where}']


def remarks(saved, to):
    """Yield sentences on what of the given file is not in an export, and on what in it was not trained."""
    if saved.unfinished:
        yield f'Warning: {saved.unfinished}'
    head = contents.classifier_of(saved)
    names = ', '.join(head)
    if saved.has_classifier and to in WITH_CLASSIFIER:
        yield f'The trained classifier is in it: {contents.num_classes(saved)} classes, {names}'
    elif saved.has_classifier:
        yield f'The trained classifier ({names}) is left out: --to={to} is for an encoder'
    elif head and saved.is_encoder:
        yield f'It has no classifier: that of the given file ({names}) was not trained, and is left out'
    elif head:
        yield (f'It has no classifier: the given file has {names}, but not all that it needs '
               f'({number_and_first_of(saved.loaded.missing)} are missing)')
    else:
        yield 'It has no classifier: the given file has none'
    idle = [key for key in saved.network.encoder.unused if key in saved.weights and key not in head]
    if idle and saved.is_encoder and to in ('timm', 'torchvision', 'hf'):
        yield (f'{number_and_first_of(idle)} are as in the given file; pretraining does not train them, and '
               'the features do not depend on them')
    module = module_of(contents.name_of(saved))
    if module and to in ('timm', 'hf'):
        yield (f"{saved.model} is none of timm's own networks: whoever reads it needs {module.replace('.', '/')}.py, and "
               'imports it first')


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.export', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add_network(parser)
    parser.add_argument('--to', required=True, choices=WRITERS, help='who is to read it')
    parser.add_argument('--out', help='folder to write into (default: export, in the folder of the given file)')
    parser.add_argument('--pth', action='store_true',
                        help="torch's format instead of safetensors, for timm and torchvision")
    parser.add_argument('--licence', '--license', help='of the weights, such as mit: for the model card of '
                        '--to=hf, and noted in the files of formats that have a place for it')
    args = parser.parse_args(expanded(argv))
    if args.pth and args.to not in ('timm', 'torchvision'):
        parser.error(f'--to={args.to} has one format only: leave --pth away')
    with errors_in_one_sentence():
        suffix = '.pth' if args.pth else '.safetensors'
        saved = network_of(args)
        out = args.out or saved.path.parent / 'export'
        for sentence in export(saved, args.to, out, suffix, args.licence):
            print(sentence)


if __name__ == '__main__':
    main()
