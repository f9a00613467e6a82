"""Checkpoints: which ones stay, that they are whole or not there, and what follows from damaged ones."""
import errno
import os
import random
import shutil
import threading

import pytest

from common.reliability import checkpoint
from common.reliability.checkpoint import (
    earlier,
    load_run,
    read_plain,
    read_run,
    save,
    save_checkpoint,
    write_atomically,
)
from common.training import trainer
from pretrain.main import pretrain
from tests.common.runs import ALONE, NAME, fail, fail_with, in_step
from tests.conftest import Stop, assert_same_run, same, saved, stop_after


def test_the_last_checkpoints_stay_and_those_of_every_so_many_epochs_for_good(tiny):
    folder = pretrain(tiny(epochs=6, save_every_steps=2, keep=3, keep_every=2, val_every=6))
    assert sorted(earlier(folder / f'{NAME}.pth')) == [10, 20, 26, 28] and saved(folder)['step'] == 30
    assert read_run(folder / f'{NAME}_step20.pth')['step'] == 20
    folder = pretrain(tiny(run_dir=str(folder.with_name('one')), keep=1))
    assert not earlier(folder / f'{NAME}.pth')


def test_a_file_system_without_links_keeps_checkpoints_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'link', lambda *paths: fail(errno.EPERM))
    path = tmp_path / 'a.pth'
    for step in (1, 2, 3):
        save_checkpoint(path, {'step': step}, step - 1 or None, keep=2)
    assert earlier(path) == {2: tmp_path / 'a_step2.pth'} and read_plain(tmp_path / 'a_step2.pth') == {'step': 2}


def test_checkpoints_of_later_steps_go_when_a_run_has_gone_back(tmp_path):
    path = tmp_path / 'a.pth'
    for step, before in ((2, None), (4, 2), (6, 4)):
        save_checkpoint(path, {'step': step}, before, keep=3)
    save_checkpoint(path, {'step': 3}, 6, keep=3)  # after it went back to step 2
    assert sorted(earlier(path)) == [2]


class Nodes:
    """Stands in for the ranks of a run. So many times one of the others sees another step."""

    def __init__(self, times):
        self.times = times

    def all_the_same(self, step):
        self.times -= 1
        return self.times < 0


def test_ranks_look_again_where_they_do_not_see_the_same_checkpoint(tmp_path, monkeypatch):
    own, waited = tmp_path / 'run.pth', []
    monkeypatch.setattr(checkpoint.time, 'sleep', waited.append)
    assert load_run(None, own, Nodes(0)) is None and not waited
    save(own, {'version': 2, 'step': 3, 'config': {}, 'model': {}, 'optimizer': {}})
    assert load_run(None, own, Nodes(2))['step'] == 3 and waited == [checkpoint.BETWEEN_LOOKS] * 2
    with pytest.raises(ValueError, match='not all ranks see the same .*run.pth: put the run folder on a file system'):
        load_run(None, own, Nodes(100))
    assert sum(waited[2:]) == 60


def test_checkpoints_by_the_clock(tiny):
    folder = pretrain(tiny(save_every_minutes=1e-6, keep=100, save_every=2))
    assert sorted(earlier(folder / f'{NAME}.pth')) == list(range(1, 10))


def test_what_is_written_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace', 'link'):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, original=original: (calls.append(name), original(*given))[1])
    (tmp_path / 'a').write_bytes(b'old')
    write_atomically(tmp_path / 'a', lambda file: file.write(b'new'), tmp_path / 'before')
    assert calls == ['fsync', 'link', 'replace', 'fsync']  # the file; names; the folder
    assert (tmp_path / 'a').read_bytes() == b'new' and (tmp_path / 'before').read_bytes() == b'old'


def test_training_goes_on_while_a_checkpoint_is_written(tiny, monkeypatch, undisturbed, tmp_path):
    """The first write is held until the run has gone a step further; what it writes is the state at its own step."""
    further, original, steps = threading.Event(), checkpoint.save, []

    def slow(path, content, *rest):
        if content.get('step') == 5:
            assert further.wait(600)
            assert len(steps) > 5
        original(path, content, *rest)

    monkeypatch.setattr(checkpoint, 'save', slow)
    in_step(monkeypatch, 6, further.set)
    in_step(monkeypatch, -1, None)
    counting = trainer.train_step
    monkeypatch.setattr(trainer, 'train_step', lambda *given: (steps.append(1), counting(*given))[1])
    folder = pretrain(tiny())
    assert_same_run(undisturbed, folder)
    one, other = (read_run(run / f'{NAME}_step5.pth') for run in (undisturbed, folder))
    assert same(one['model'], other['model']) and same(one['optimizer'], other['optimizer'])


def test_an_error_in_the_writing_thread_ends_the_run_as_it_is(tiny, monkeypatch):
    monkeypatch.setattr(checkpoint, 'save', lambda *given: fail_with(MemoryError('no memory for the copy')))
    with pytest.raises(MemoryError, match='no memory for the copy'):
        pretrain(tiny())


def flip(path, position, bit=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(b''), lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: flip(path, path.stat().st_size // 2), lambda path: path.write_bytes(b'\0' * 5000),
])
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_is_used(tiny, undisturbed, tmp_path, monkeypatch, capsys, damage):
    options = tiny(save_every_steps=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stop):
            pretrain(options)
    newest = tmp_path / f'run/{NAME}.pth'
    assert read_run(newest)['step'] == 8
    damage(newest)
    pretrain(options)
    said = capsys.readouterr()
    assert f'It is {NAME}_damaged.pth now' in said.err and 'going on from step 6' in said.out
    assert (tmp_path / f'run/{NAME}_damaged.pth').exists()
    assert_same_run(undisturbed, tmp_path / 'run')


def test_nothing_whole_is_an_error_and_nothing_is_touched(undisturbed, tmp_path, tiny):
    shutil.copytree(undisturbed, tmp_path / 'run')
    for file in (tmp_path / 'run').glob(f'{NAME}*.pth'):
        os.truncate(file, 100)
    before = sorted(path.name for path in (tmp_path / 'run').iterdir())
    with pytest.raises(ValueError, match=f'{NAME}.pth is damaged.*--fresh'):
        pretrain(tiny())
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == before


def fuzz(folder, number, seed):
    """Truncate the newest checkpoint or flip a bit of it, so many times; what load_run makes of each.

    Every one must be read as it was, or the one before it be taken; 'read' and 'before' are counted.
    """
    newest, old = folder / f'{NAME}.pth', folder / f'{NAME}_step5.pth'
    whole, contents = newest.read_bytes(), [read_run(newest), read_run(old)]
    rng, counts = random.Random(seed), {'read': 0, 'before': 0}
    for i in range(number):
        # A third cut off; a third with a bit flipped anywhere, a third near the end, where the directory of the archive is.
        if i % 3 == 0:
            damaged = whole[:rng.randrange(len(whole))]
        else:
            at = rng.randrange(len(whole)) if i % 3 == 1 else len(whole) - 1 - rng.randrange(20_000)
            damaged = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:]
        newest.write_bytes(damaged)
        found = load_run(None, newest, ALONE)
        which = 'before' if found['path'] == str(old) else 'read'
        assert same({key: value for key, value in found.items() if key not in ('path', 'own', 'damaged')},
                    contents[which == 'before']), i
        counts[which] += 1
    return counts


def test_a_sample_of_damages_never_leads_to_a_wrong_resume(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'run')
    counts = fuzz(tmp_path / 'run', 60, seed=0)
    assert counts['before'] >= 35 and sum(counts.values()) == 60


@pytest.mark.slow
def test_a_thousand_damages_never_lead_to_a_wrong_resume(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'run')
    counts = fuzz(tmp_path / 'run', 1000, seed=1)
    print(counts)
    assert counts['before'] >= 600 and sum(counts.values()) == 1000


def test_versions(undisturbed, tmp_path, tiny, monkeypatch):
    content = read_run(undisturbed / f'{NAME}_step5.pth')
    (tmp_path / 'run').mkdir()
    save(tmp_path / f'run/{NAME}.pth', {**content, 'version': 3})
    with pytest.raises(ValueError, match='written by a later version of this program'):
        pretrain(tiny())
    first = {key: content[key] for key in ('step', 'sums', 'images', 'accum', 'ranks', 'config', 'model', 'optimizer')}
    first['config'] = {key: value for key, value in first['config'].items() if key not in ('keep', 'max_skips', 'rewind')}
    save(tmp_path / f'run/{NAME}.pth', {'version': 1, **first})  # as before there were fingerprints
    folder = pretrain(tiny())
    assert same(saved(folder)['model'], saved(undisturbed)['model'])


def test_too_little_space_is_an_error_before_the_start(tiny, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ValueError, match=r'0\.00 GB of free space; a checkpoint takes 0\.00 GB, .* room for 3'):
        pretrain(tiny())
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=50_000_000))
    pretrain(tiny(epochs=1))
