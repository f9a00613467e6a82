"""Where users register networks of their own with timm."""
import importlib

# The module in which users register networks of their own. It is imported by its name: this is the one place
# where `common` reaches into a program's folder, and the folder may be left away.
USERS_NETWORKS = 'pretrain.models'


def register(module=USERS_NETWORKS):
    """Import the module in which a user's networks are registered. Raises ValueError if there is none."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The error can also be of a package that the module imports.
        if module != USERS_NETWORKS or error.name not in (USERS_NETWORKS, USERS_NETWORKS.partition('.')[0]):
            raise ValueError(f'--register={module}: {error}') from error
