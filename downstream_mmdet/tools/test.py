"""Measure a detector's average precision with MMDetection.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--cfg-options ...]
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
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir', help='where logs go; work_dirs/<config> if not given')
    parser.add_argument('--data-dir', help="a data set in COCO's layout, of any classes, instead of data/coco")
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
    config.launcher, config.load_from = args.launcher, args.checkpoint
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    config.model.backbone.init_cfg = None  # the checkpoint holds everything
    trust(config.work_dir, args.trust)
    Runner.from_cfg(config).test()


if __name__ == '__main__':
    main()
