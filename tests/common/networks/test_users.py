"""The module in which a user's networks are registered."""
import pytest

from common.networks.users import USERS_NETWORKS, register


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
