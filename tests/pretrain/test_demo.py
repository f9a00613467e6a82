"""The demo goes on where it stopped, compares both sides on held-out images, and shows a picture."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from common.fabrics import write_fabrics
from downstream_imagenet.features import Options as ProbeOptions
from downstream_imagenet.features import network
from pretrain import demo
from pretrain.saved import read_saved
from pretrain.spark_method import SparKOptions
from tests.conftest import ROOT

SMALL = ('--train=48', '--val=24', '--epochs=2')


def small(folder):
    return demo.Demo(folder, train=48, val=24, epochs=2, seed=0)


@pytest.fixture
def trained(finished, tmp_path):
    """A Demo whose fabrics are drawn and whose network is trained, on other images."""
    made = small(tmp_path)
    made.claim_folder()
    write_fabrics(made.world, train=12, val=24, side=64, seed=0)
    shutil.copytree(finished, made.run)
    return made


def refuse(*_, **__):
    raise AssertionError('a program was started')


def test_the_picture_has_four_rows_of_held_out_images(trained):
    demo.show(trained)
    width, height = Image.open(trained.picture).size
    assert width > demo.SHOWN * demo.TILE and height > 4 * demo.TILE


def test_the_untrained_network_is_the_one_that_the_run_started_from(trained):
    saved = read_saved(trained.run)
    before, after = demo.untrained(saved.options).state_dict(), saved.network.state_dict()
    assert before.keys() == after.keys()
    frozen = [key for key in before if key.startswith('encoder.cnn.head')]  # pretraining leaves the classifier alone
    assert frozen and all(before[key].equal(after[key]) for key in frozen)
    assert not before['encoder.cnn.stages.0.conv1.weight'].equal(after['encoder.cnn.stages.0.conv1.weight'])


def test_the_untrained_side_of_the_probes_is_that_network_too():
    options = SparKOptions(name='x', model='your_convnet', input_size=64, decoder_width=64, seed=3)
    ours = demo.untrained(options).encoder.cnn.state_dict()
    theirs = network(ProbeOptions(random=True, model='your_convnet', input_size=64, seed=3), print).state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_a_finished_demo_says_its_result_again_and_starts_nothing(trained, monkeypatch, capsys):
    trained.results.write_text(json.dumps({'knn': {'untrained': 31.5, 'pretrained': 92.5},
                                           'linear': {'untrained': 73.5, 'pretrained': 99.5}}))
    monkeypatch.setattr(subprocess, 'Popen', refuse)
    demo.main([str(trained.folder), *SMALL])
    text = capsys.readouterr().out
    for expected in ('31.5 %', '92.5 %', '73.5 %', '99.5 %', '8.3 % is chance', str(trained.picture), str(trained.weights),
                     'tensorboard', 'bash pretrain/main.sh my_run'):
        assert expected in text
    losses = [line['val_loss'] for line in map(json.loads, (trained.run / 'pretrain_log.txt').read_text().splitlines())
              if 'val_loss' in line]
    assert f'{losses[0]:.3f}' in text and f'{losses[-1]:.3f}' in text


def test_a_folder_with_another_demo_is_refused(trained, monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', refuse)
    with pytest.raises(SystemExit, match='give another folder'):
        demo.main([str(trained.folder), *SMALL, '--seed=1'])


@pytest.mark.parametrize('code', [75, 0])
def test_a_run_that_is_interrupted_is_waited_for(tmp_path, monkeypatch, code):
    """A code of 0: the run had just come to its end."""
    class Process:
        waits = [KeyboardInterrupt, code]

        def __init__(self, command, **_):
            assert '--epochs=2' in command and '--warmup_epochs=0.2' in command

        def wait(self):
            result = self.waits.pop(0)
            if result is KeyboardInterrupt:
                raise result
            return result

    monkeypatch.setattr(subprocess, 'Popen', Process)
    with pytest.raises(SystemExit) as stopped:
        demo.train(small(tmp_path))
    assert stopped.value.code == 75 and not Process.waits


@pytest.mark.slow  # a minute or two: seven programs
def test_the_whole_demo_is_interrupted_and_goes_on(tmp_path):
    command = [sys.executable, '-m', 'pretrain.demo', str(tmp_path), *SMALL]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    log = small(tmp_path).run / 'stdout_backup.txt'
    while process.poll() is None and not (log.exists() and 'Before training' in log.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the demo, and to what it started
    assert process.wait() == 75 and not small(tmp_path).results.exists()
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert 'Drawing' not in text and 'Look at' in text and small(tmp_path).picture.exists()
    accuracies = json.loads(small(tmp_path).results.read_text())
    assert accuracies.keys() == {'knn', 'linear'}
    assert all(0 <= value <= 100 for sides in accuracies.values() for value in sides.values())
