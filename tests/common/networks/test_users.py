"""The module in which a user's networks are registered."""
import pytest

from common.networks.users import USERS_NETWORKS, register
from pretrain import check, export, plan
from pretrain.main import pretrain


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--register=no_such_module: No module named 'no_such_module'"):
        register('no_such_module')


@pytest.mark.parametrize('missing', ['einops', 'common.no_such_part'])
def test_a_package_that_the_users_networks_import_and_that_is_missing_is_named(monkeypatch, missing):
    """Only the folder itself may be left away."""
    def fails(name):
        raise ModuleNotFoundError(f'No module named {missing!r}', name=missing)

    monkeypatch.setattr('importlib.import_module', fails)
    with pytest.raises(ValueError, match=f'--register={USERS_NETWORKS}: No module named {missing!r}'):
        register()


@pytest.mark.parametrize('missing', ['pretrain', USERS_NETWORKS])
def test_the_folder_itself_may_be_left_away(monkeypatch, missing):
    def fails(name):
        raise ModuleNotFoundError(f'No module named {missing!r}', name=missing)

    monkeypatch.setattr('importlib.import_module', fails)
    register()


NETWORK = '''
from timm.models import register_model
from pretrain.models.custom import YourConvNet

@register_model
def net_of_my_package(pretrained=False, in_chans=3, num_classes=1000, **kwargs):
    return YourConvNet(in_chans, num_classes, (8, 16))
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a module outside of the clone, which registers net_of_my_package."""
    (tmp_path / 'my_package').mkdir()
    (tmp_path / 'my_package/networks.py').write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    return 'my_package.networks'


def test_a_network_of_a_users_own_package_is_checked_planned_pretrained_and_read(package, tiny, tmp_path, capsys):
    named = ['--model=net_of_my_package', f'--register={package}']
    with pytest.raises(SystemExit):
        check.main(['net_of_my_package'])
    assert 'no network is called "net_of_my_package" in timm' in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        check.main(['net_of_my_package', named[1]])
    assert not ended.value.code
    plan.main([*named, '--images=100', '--input_size=32', '--decoder_width=16'])
    folder = pretrain(tiny(model='net_of_my_package', register=package, epochs=1))
    export.main([str(folder), '--to=timm', f'--out={tmp_path}', named[1]])
    assert (tmp_path / 'net_of_my_package_timm.safetensors').exists()
    assert 'net_of_my_package' in capsys.readouterr().out
