"""Train a detector with MMDetection.

    python tools/train.py CONFIG --cfg-options model.backbone.init_cfg.checkpoint=FILE [--work-dir DIR] [--resume]
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that configs find downstream_mmdet

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from downstream_mmdet.checkpoints import trust
from downstream_mmdet.data import use_data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('config')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config> if not given')
    parser.add_argument('--resume', nargs='?', const='auto', help='go on from the latest checkpoint there, or from a file')
    parser.add_argument('--data-dir', help="a data set in COCO's layout, of any classes, instead of data/coco")
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch, from 16')
    parser.add_argument('--trust', action='store_true', help='read checkpoints from outside of the work-dir whole too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, with dots in a key')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    args = parser.parse_args()
    config = Config.fromfile(args.config)
    if args.data_dir:
        try:
            use_data(config, args.data_dir)
        except ValueError as error:
            parser.error(str(error))
    config.merge_from_dict(args.cfg_options)
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.resume:
        config.resume, config.load_from = True, None if args.resume == 'auto' else args.resume
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        config.merge_from_dict({'auto_scale_lr.enable': True})
    trust(config.work_dir, args.trust)
    Runner.from_cfg(config).train()


if __name__ == '__main__':
    main()
