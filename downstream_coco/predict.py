"""Find objects in images with a trained detector: draw their boxes and masks, and write COCO's result format.

    python -m downstream_coco.predict --weights=output_my_detector/resnet50_coco_last.pth IMAGE ...

IMAGE may also be a folder. The pictures are in output_my_detector/predictions/, unless --out names another folder.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

from pathlib import Path

import torch
from torchvision.transforms import functional as F

from common.cli import errors_in_one_sentence, expanded, reader_may_leave
from common.distributed import distributed
from common.images.files import SeveralFiles
from common.live_line import LiveLine
from common.networks.users import USERS_NETWORKS, register
from common.prediction import PredictionTable, options_of_file, prediction_parser, readable, to_predict_with
from common.training.run import autocast
from common.words import counted
from downstream_coco.checkpoints import read_detector, restore
from downstream_coco.config import Options
from downstream_coco.drawing import drawn, to_draw
from downstream_coco.evaluation import as_results
from downstream_coco.scenes import Collate, WholeView


@torch.no_grad()
def predict(weights, sources, out, score=0.5, which='model', say=print, module=USERS_NETWORKS, overlap=0.5):
    """Write <number>_<name>.png for each image, and predictions.json, into a folder; returns what is in the
    latter. Pictures of small images are enlarged (drawing.py).

    weights: a checkpoint of a detection run. sources: files and folders. out: the folder.
    score: the least of an object that is kept.
    which: 'model', or 'ema' for the average of the weights, if the file has one.
    say: called with texts for the user.
    module: in which the user's own networks are registered. The one that the file names is not imported,
        since that would run code.
    overlap: of two objects that overlap by more, only the more certain one is drawn; see `to_draw`.
        predictions.json has both.

    Raises ValueError for files that cannot be used. Images that cannot be read are left out, and warned of.
    """
    content = read_detector(weights)
    options = options_of_file(content, Options, weights)
    if not 0 <= overlap <= 1:
        raise ValueError(f'--overlap lies between 0 and 1, where 1 draws all objects, not {overlap}')
    line = LiveLine(say)
    with distributed() as ranks, line.counting('detected') as count:
        register(module)
        images = SeveralFiles(sources, options.in_chans, options.reading)
        _, models, categories, _ = restore(content, options)
        model = to_predict_with(models, which, weights, ranks.device)
        model.roi_heads.score_thresh = min(model.roi_heads.score_thresh, score)
        table = PredictionTable(images, out, line)
        count.start('detected', len(images))
        for number, image in readable(images, options, line, count):
            found = detected(model, image, options, ranks, score)
            shown = to_draw(found, overlap)
            picture = f'{table.path(number)}.png'
            drawn(image, {key: value[shown] for key, value in found.items()}, categories).save(picture)
            fewer = f' ({len(shown)} drawn)' if len(shown) < len(found['labels']) else ''
            table.add(number, as_results(found, number, categories, *image.shape[1:]),
                      f'{counted(len(found["labels"]), "object")}{fewer}, {picture}')
        return table.write('object')


def detected(model, image, options, ranks, score):
    """The objects in an image (C, h, w) with at least this score, as Detector.detect gives them, on the CPU."""
    size = tuple(image.shape[1:])
    view = WholeView(options.input_size, options.long_side)(*size)
    tensor = F.normalize(F.convert_image_dtype(view.image(image), torch.float32), *options.normalisation)
    padded, _, _ = Collate(model.stride)([(tensor, None, [])])
    with autocast(options, ranks):
        found = model.detect(padded.to(ranks.device), [view.size], [size])[0]
    kept = found['scores'] >= score
    return {key: value[kept].cpu() for key, value in found.items()}


@reader_may_leave()
def main(argv=None):
    parser = prediction_parser('downstream_coco.predict', __doc__.splitlines()[0],
                               '<model>_coco_last.pth, _best.pth or _best_ema.pth of a run')
    parser.add_argument('--score', type=float, default=0.5, help='least score of what is kept (default: 0.5)')
    parser.add_argument('--overlap', type=float, default=0.5, help='of two boxes that overlap by more, as '
                        'intersection over union, only the more certain one is drawn, whatever their classes; 1 '
                        'draws all; predictions.json has all (default: 0.5)')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        which = 'ema' if args.ema else 'model'
        out = args.out or Path(args.weights).parent / 'predictions'
        predict(args.weights, args.images, out, args.score, which, module=args.register, overlap=args.overlap)


if __name__ == '__main__':
    main()
