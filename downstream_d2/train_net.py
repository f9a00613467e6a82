"""Train a detector with a pretrained ResNet on COCO, with Detectron2.

    python3 train_net.py --resume --num-gpus 8 --config-file configs/coco_R_50_FPN_CONV_1x_moco_adam.yaml \\
        MODEL.WEIGHTS d2-style.pkl OUTPUT_DIR output_my_run

The same command again resumes. --num-gpus 0 is the CPU. --data-dir takes any data set in COCO's layout; without it the data are
where Detectron2 looks for COCO, in datasets/coco.
"""
import json
import math
import os
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

try:
    import detectron2.utils.comm as comm
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, hooks, launch
    from detectron2.evaluation import COCOEvaluator, verify_results
    from detectron2.solver.build import maybe_add_gradient_clipping
except ImportError as error:
    raise ImportError(f'this program needs Detectron2, built from source: see downstream_d2/README.md ({error})') from error

from common.coco_layout import read_split
from downstream_d2.lr_decay import parameter_groups

OPTIMIZERS = {'ADAMW': torch.optim.AdamW, 'ADAM': torch.optim.AdamW, 'SGD': torch.optim.SGD}
LOG = 'd2_coco_log.txt'


def coco_figures(results):
    """{'boxAP': ..., 'mskAP': ...} of an evaluation; None for what was not measured, or where nothing was found.

    Of several data sets in DATASETS.TEST, {name: the same}.
    """
    if results and not results.keys() & {'bbox', 'segm'}:
        return {name: coco_figures(one) for name, one in results.items()}
    figures = {name: (results.get(task) or {}).get('AP') for name, task in (('boxAP', 'bbox'), ('mskAP', 'segm'))}
    return {name: None if value is None or math.isnan(value) else round(value, 3) for name, value in figures.items()}


class Trainer(DefaultTrainer):
    """Detectron2's, with COCO's evaluation, AdamW or SGD with layer-wise learning rates, and a log of the precisions."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, 'inference'))

    @classmethod
    def build_optimizer(cls, cfg, model):
        solver, name = cfg.SOLVER, cfg.SOLVER.OPTIMIZER.upper()
        kind = maybe_add_gradient_clipping(cfg, OPTIMIZERS[name])
        groups = parameter_groups(model, solver.BASE_LR, solver.LR_DECAY, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM)
        return kind(groups, lr=solver.BASE_LR, **({'momentum': solver.MOMENTUM, 'nesterov': solver.NESTEROV}
                                                  if name == 'SGD' else {}))

    def build_hooks(self):
        return [hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate) if isinstance(hook, hooks.EvalHook) else hook
                for hook in super().build_hooks()]

    def evaluate(self):
        """Evaluate, and add a line to d2_coco_log.txt."""
        self._last_eval_results = self.test(self.cfg, self.model)
        if comm.is_main_process():
            with open(os.path.join(self.cfg.OUTPUT_DIR, LOG), 'a', encoding='utf-8') as file:
                done = min(self.iter + 1, self.max_iter)  # after the last step Detectron2 has counted it already
                file.write(json.dumps({'iter': done, 'of': self.max_iter, **coco_figures(self._last_eval_results)}) + '\n')
        return self._last_eval_results


def use_data(cfg, folder):
    """Train and evaluate on a folder in COCO's layout, with as many classes as it has, and with masks if its objects have
    some. Raises ValueError.
    """
    categories, masks, run_lengths = [], [], False
    for split in ('train', 'val'):
        images, annotations, content, has_masks = read_split(folder, split)
        masks.append(has_masks)
        categories.append(sorted((one['id'], one['name']) for one in content['categories']))
        run_lengths |= any(isinstance(one.get('segmentation'), dict) for one in content['annotations']
                           if not one.get('iscrowd'))
        register_coco_instances(f'own_{split}', {}, str(annotations), str(images))
    if categories[0] != categories[1]:
        raise ValueError(f'the training and validation annotations in {folder} do not have the same categories')
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ('own_train',), ('own_val',)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(categories[0])
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON and all(masks)
    if run_lengths:  # which Detectron2 takes as bitmaps only
        cfg.INPUT.MASK_FORMAT = 'bitmask'


def check_solver(solver):
    """Raise a ValueError for what `Trainer.build_optimizer` cannot make."""
    if solver.OPTIMIZER.upper() not in OPTIMIZERS:
        raise ValueError(f'SOLVER.OPTIMIZER is one of {", ".join(OPTIMIZERS)}, not {solver.OPTIMIZER}')
    if solver.BIAS_LR_FACTOR != 1 or solver.WEIGHT_DECAY_BIAS not in (None, solver.WEIGHT_DECAY):
        raise ValueError('SOLVER.BIAS_LR_FACTOR and SOLVER.WEIGHT_DECAY_BIAS are not supported: leave them as they are')


def configuration(args):
    """Detectron2's defaults < our two keys < the file < the command line; on the CPU where there is no GPU."""
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_DECAY = 'SGD', 1.0
    cfg.merge_from_file(args.config_file)
    if args.data_dir:
        use_data(cfg, args.data_dir)
    if args.num_gpus == 0 or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = 'cpu'
    cfg.merge_from_list(args.opts)
    check_solver(cfg.SOLVER)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    try:
        cfg = configuration(args)
    except ValueError as error:
        sys.exit(f'error: {error}')
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
            print(coco_figures(results))
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == '__main__':
    parser = default_argument_parser()
    parser.add_argument('--data-dir', help="a data set in COCO's layout, of any classes, instead of datasets/coco")
    args = parser.parse_args()
    if not args.config_file:
        parser.error('give --config-file configs/...')
    launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url,
           args=(args,))
