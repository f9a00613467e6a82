"""The main job in a few minutes on two CPU cores: pretrain a small network on drawn pictures, and look at the result.

    make demo          or          python -m pretrain.demo [FOLDER]

Draws a picture world, pretrains `your_convnet` on it through main.sh, prints the loss on held-out pictures before and after,
and loads the weights into timm. The same command again goes on where it stopped.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import timm
import torch

import pretrain.models  # noqa: F401  (registers your_convnet)
from common.demo_world import write_world

OPTIONS = ('--model=your_convnet', '--input_size=64', '--decoder_width=64', '--bs=32', '--ep=10', '--lr=3e-2', '--val_every=2',
           '--picture_every=2', '--ngpu_per_node=1')


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else 'demo_output').resolve()
    world, run = folder / 'world', folder / 'output_demo'
    if not (world / 'complete').exists():
        print(f'Drawing 3000 + 200 pictures into {world} ...', flush=True)
        write_world(world, train=3000, val=200, side=64, seed=0)
        (world / 'complete').touch()
    command = ['bash', str(Path(__file__).with_name('main.sh')), 'demo', f'--data_path={world}', *OPTIONS]
    print(' '.join(command), flush=True)
    code = subprocess.run(command, cwd=folder, env={**os.environ, 'PYTHON': sys.executable}).returncode
    if code:
        sys.exit(code)

    lines = [json.loads(line) for line in (run / 'pretrain_log.txt').read_text().splitlines()]
    losses = [line['val_loss'] for line in lines if line.get('val_loss') is not None]
    weights = torch.load(run / 'your_convnet_1kpretrained.pth', weights_only=True)
    cnn = timm.create_model('your_convnet', num_classes=10)
    left = cnn.load_state_dict({k: v for k, v in weights.items() if not k.startswith('head.')}, strict=False)
    assert left.missing_keys == ['head.weight', 'head.bias'] and not left.unexpected_keys
    print(f'''
Held-out loss   {losses[0]:.3f} before, {losses[-1]:.3f} after (1 is what a decoder that says nothing gets)
Pictures        {max((run / "reconstructions").iterdir())}: input, masked, reconstruction
Weights         {run / "your_convnet_1kpretrained.pth"}, loaded into timm's your_convnet with only the classifier missing
Curves          tensorboard --logdir {run / "tensorboard_log"}''')


if __name__ == '__main__':
    main()
