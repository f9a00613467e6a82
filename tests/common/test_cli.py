"""Options of a command line: what has three answers, and what has another name than before."""
from dataclasses import dataclass

import pytest

from common.cli import boolean, changes, errors_in_one_sentence, option, parse, plain_fields, renewed


@pytest.mark.parametrize(('error', 'sentence'), [
    (ValueError('it does not fit'), 'error: it does not fit'), (ValueError(), 'error: ValueError'),
    (ValueError('Caught ValueError in a process\n  trace\nValueError: a file'), 'error: a file')])
def test_what_does_not_fit_is_one_sentence(error, sentence):
    with pytest.raises(SystemExit) as end, errors_in_one_sentence():
        raise error
    assert end.value.code == sentence


@pytest.mark.parametrize(('text', 'sentence'), [
    ('NCCL error in: a.cpp:1, remote process exited or there was a network error, NCCL version 2.27\nncclRemoteError: A call '
     'failed\nLast error:\nnet.cc:5 socket closed', 'error: rank 0 has lost the others: .* last checkpoint .net.cc:5 socket '),
    ('NCCL error in: a.cpp:1, unhandled system error, NCCL version 2.27\nncclSystemError: System call\nLast error:\nError '
     'while creating shared memory segment /dev/shm/nccl-1 (size 9)', 'error: rank 0: the GPUs cannot work together, says '
     'NCCL: Error while creating shared memory segment /dev/shm/nccl-1 .size 9.. If .*NCCL_DEBUG=INFO'),
    ('NCCL error in: a.cpp:1, invalid usage', 'says NCCL: NCCL error in: a.cpp:1, invalid usage. If'),
    ('[gloo/tcp.cc:1] Connection closed by peer [127.0.0.1]', 'error: rank 0 has lost the others: .*closed by peer')])
def test_what_ranks_cannot_do_together_is_one_sentence(text, sentence):
    with pytest.raises(SystemExit, match=sentence), errors_in_one_sentence(resumes=True):
        raise RuntimeError(text)


@dataclass(frozen=True)
class Switches:
    graph: bool = option(None, 'capture the step; by the device if not given', 'machine', parse=boolean)
    flip: bool = option(True, 'mirror half of the images', 'data')


@pytest.mark.parametrize(('line', 'graph'), [
    ([], None), (['--graph'], True), (['--graph=True'], True), (['--graph', 'yes'], True), (['--graph=False'], False),
    (['--graph=0'], False), (['--no_graph'], False), (['--graph', '--flip=False'], True),
])
def test_a_boolean_without_a_default_has_three_answers(line, graph):
    assert parse(Switches, 'switches', 'Two switches.', line).graph is graph


def test_it_stays_a_boolean():
    assert plain_fields(Switches()) == {'graph': None, 'flip': True}
    assert plain_fields(Switches(graph=False))['graph'] is False
    with pytest.raises(ValueError, match='graph cannot be 1: capture the step'):
        plain_fields(Switches(graph=1))
    with pytest.raises(SystemExit):
        parse(Switches, 'switches', 'Two switches.', ['--graph=maybe'])


@dataclass(frozen=True)
class Renamed:
    speed: str = option('slow', 'how fast', 'data', choices=('slow', 'fast', 'faster'),
                        replaces={'hurry': {True: 'fast', False: 'slow'}})


@pytest.mark.parametrize(('line', 'speed'), [
    ([], 'slow'), (['--hurry'], 'fast'), (['--hurry=True'], 'fast'), (['--hurry', 'yes'], 'fast'), (['--hurry=0'], 'slow'),
    (['--no_hurry'], 'slow'), (['--speed=faster'], 'faster'), (['--hurry', '--speed=faster'], 'faster'),
])
def test_the_flag_of_an_option_that_was_replaced_still_works(line, speed):
    assert parse(Renamed, 'renamed', 'An option.', line).speed == speed


def test_a_wrong_value_of_a_replaced_flag_is_an_error():
    with pytest.raises(SystemExit):
        parse(Renamed, 'renamed', 'An option.', ['--hurry=maybe'])


def test_help_does_not_show_what_was_replaced(capsys):
    with pytest.raises(SystemExit):
        parse(Renamed, 'renamed', 'An option.', ['--help'])
    assert 'hurry' not in capsys.readouterr().out


@pytest.mark.parametrize(('saved', 'then'), [({}, 'slow'), ({'hurry': True}, 'fast'), ({'hurry': False}, 'slow'),
                                             ({'speed': 'faster'}, 'faster'), ({'hurry': 'odd'}, 'odd')])
def test_a_run_that_was_saved_with_the_old_name_is_compared_by_the_new_one(saved, then):
    expected = [] if then == 'fast' else [('speed', 'fast', then)]
    assert changes(Renamed('fast'), saved, may_change=False) == expected
    assert renewed(Renamed, {**saved, 'other': 1}) == {'other': 1, **({'speed': then} if saved else {})}
