"""Mistakes of a command line, and the launch line itself."""
import subprocess
import sys

import pytest

from pretrain.main import main
from tests.conftest import ROOT, flags, log_of, main_sh


@pytest.mark.parametrize(('arguments', 'word'), [
    (['--data_path=nowhere'], 'no folder or list of images nowhere'), (['--model=resnet5O'], 'nearest names are'),
    (['--input_size=33'], 'give 32 or 40'), (['--bs=9', '--accum=2'], 'give --bs=8 or --bs=10'),
    (['--run_dir=/proc/x/y'], 'cannot make the run folder'), (['--mask=0.99'], 'mask_ratio 0.99'),
    (['--dataset=hfds/x'], 'timm cannot make the data set hfds/x'),
])
def test_mistakes_end_with_one_sentence(tiny, tmp_path, arguments, word):
    line = [a for a in flags(tiny()) if a.split('=')[0] not in {b.split('=')[0] for b in arguments}]
    with pytest.raises(SystemExit) as end:  # with a text, which Python writes to stderr, and code 1
        main(['--name=x', *line, *arguments])
    assert end.value.code.startswith('error: ') and word in end.value.code
    assert not (tmp_path / 'run').exists()


def test_a_mistake_ends_with_code_1_and_no_trace(tmp_path):
    done = main_sh('x', '--ngpu_per_node=1', '--data_path=nowhere', cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == 'error: there is no folder or list of images nowhere\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_launch_line_from_another_folder_on_one_and_two_processes(tiny, tmp_path):
    """2 processes see the images and masks of 1, and their losses agree: BatchNorm is shared, drop path is 0. On static inputs,
    as of a CUDA graph, they are the same to the last bit.
    """
    line = [a for a in flags(tiny(log_every=1)) if not a.startswith('--run_dir')]
    losses = []
    for name, extra in (('one', ['--num_nodes=1', '--ngpu_per_node=1']), ('two', ['--ngpu_per_node', '2']),
                        ('static', ['--ngpu_per_node', '2', '--graph'])):
        done = main_sh(name, *extra, *line, cwd=tmp_path)
        assert done.returncode == 0 and 'UserWarning' not in done.stdout + done.stderr, done.stderr
        assert f'8 = {1 if name == "one" else 2} rank' in done.stdout
        epochs, _ = log_of(tmp_path / f'output_{name}')
        board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
        events = board.EventAccumulator(str(tmp_path / f'output_{name}/tensorboard_log')).Reload()
        losses.append([event.value for event in events.Scalars('loss/train')])
        assert len(epochs) == 3
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[1] == losses[2]


def test_the_launcher_names_its_own_mistakes(tmp_path):
    for arguments, word in ((['--data_path=x'], 'first argument is the name'), (['x', '--ngpu_per_node=two'], 'are numbers'),
                            (['x', '--num_nodes=2'], '--node_rank'), (['x', '--num_nodes'], 'needs a value'),
                            (['x', '--name=y'], 'leave out --name'), (['x', '--ngpu_per_node=0'], '1 or more')):
        done = main_sh(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr


@pytest.mark.slow
def test_started_as_a_file(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / 'pretrain/main.py'), '--help'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and '--mask_ratio' in done.stdout
