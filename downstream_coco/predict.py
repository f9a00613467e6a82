"""Find objects in images with a trained detector: draws boxes and masks, and writes what was found in COCO's result format.

    python -m downstream_coco.predict --weights=output_my_run/resnet50_coco_last.pth IMAGE_OR_FOLDER ... --out=DIR
"""
import argparse
import json
from pathlib import Path

import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from common.cli import errors_in_one_sentence, expanded, reader_may_leave
from common.distributed import distributed
from common.images.files import SeveralFiles
from common.images.survey import warn_of
from common.networks.create import USERS_NETWORKS, register
from common.reliability.checkpoint import write_atomically
from common.training.run import autocast
from common.words import counted
from downstream_coco.checkpoints import read_detector, restore
from downstream_coco.config import Options
from downstream_coco.data import Collate, WholeView
from downstream_coco.evaluation import as_results

COLOURS = ('#e6194b', '#3cb44b', '#4363d8', '#f58231', '#911eb4', '#46f0f0', '#f032e6', '#bcf60c', '#fabebe', '#008080',
           '#9a6324', '#800000', '#808000', '#000075')


def drawn(image, found, names):
    """An image (3, h, w) uint8 with boxes, classes, scores, and masks where there are some."""
    colours = [COLOURS[(label - 1) % len(COLOURS)] for label in found['labels'].tolist()]
    for mask, box, colour in zip(found.get('masks', ()), found['boxes'], colours):  # one by one: images may be large
        whole = paste_masks_in_image(mask[None], box[None], tuple(image.shape[1:]), padding=1)[0] > 0.5
        image = draw_segmentation_masks(image, whole, 0.4, colour)
    texts = [f'{names[label - 1]} {score:.2f}' for label, score in zip(found['labels'].tolist(), found['scores'].tolist())]
    return draw_bounding_boxes(image, found['boxes'], texts, colours) if texts else image


@torch.no_grad()
def predict(weights, sources, out, score=0.5, which='model', say=print, module=USERS_NETWORKS):
    """Write <name>.png for each image, and predictions.json, into the folder out; returns what is in the latter.

    which: 'model', or 'ema' for the average of a file that has one. Objects below the score are left out.
    module: in which your own networks are registered; the file's word for it is not followed, since importing one runs it.
    Raises ValueError.
    """
    found, content = [], read_detector(weights)
    config = {name: value for name, value in content['config'].items() if name in Options.__dataclass_fields__}
    options = Options(**{**config, 'resume': None, 'finetune_from': None, 'eval': str(weights)})
    with distributed() as ranks:
        register(module)
        images, (_, models, categories, _) = SeveralFiles(sources, options.in_chans, options.reading), restore(content, options)
        if which not in models:
            raise ValueError(f'{weights} holds no average of the weights (EMA)')
        model = models[which].to(ranks.device, memory_format=torch.channels_last).eval()
        model.roi_heads.score_thresh = min(model.roi_heads.score_thresh, score)
        view, collate = WholeView(options.input_size, options.long_side), Collate(model.stride)
        Path(out).mkdir(parents=True, exist_ok=True)
        for warning in warn_of(images, options):
            say(f'warning: {warning}')
        for number in range(len(images)):
            try:
                image = images[number]
                image = image if torch.is_tensor(image) else F.pil_to_tensor(image)
            except Exception as error:  # whatever a file can do to a reader
                say(f'warning: {images.name(number)} cannot be read ({error}): it is left out')
                continue
            original = tuple(image.shape[1:])
            seen = view(*original)
            tensor = F.normalize(F.convert_image_dtype(seen.image(image), torch.float32), *options.normalisation)
            padded, _, _ = collate([(tensor, None, [])])
            with autocast(options, ranks):
                one = model.detect(padded.to(ranks.device), [seen.size], [original])[0]
            kept = one['scores'] >= score
            one = {key: value[kept].cpu() for key, value in one.items()}
            picture = F.convert_image_dtype(image, torch.uint8).expand(3, -1, -1)
            name = f'{number:04}_{Path(images.name(number)).stem}.png'
            F.to_pil_image(drawn(picture, one, [category['name'] for category in categories])).save(Path(out, name))
            found += [{'file_name': images.name(number), **result} for result in as_results(one, number, categories, *original)]
            say(f'{images.name(number)}: {counted(len(one["labels"]), "object")}, {Path(out, name)}')
        write_atomically(Path(out, 'predictions.json'), lambda file: file.write(json.dumps(found).encode()))
    return found


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('downstream_coco.predict', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('images', nargs='+', help='images, or folders of them')
    parser.add_argument('--weights', required=True, help='<model>_coco_last.pth, _best.pth or _best_ema.pth of a run')
    parser.add_argument('--out', default='predictions', help='folder for the pictures and predictions.json')
    parser.add_argument('--score', type=float, default=0.5, help='least score of what is kept (default: 0.5)')
    parser.add_argument('--ema', action='store_true', help='the average of the weights in <model>_coco_last.pth')
    parser.add_argument('--register', default=USERS_NETWORKS, help='module in which your own networks are registered with '
                        'timm (default: pretrain.models)')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        predict(args.weights, args.images, args.out, args.score, 'ema' if args.ema else 'model',
                module=args.register)


if __name__ == '__main__':
    main()
