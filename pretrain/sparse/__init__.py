"""How a CNN runs on the visible cells of an image: see plane.py, and `on_plane` for layers of your own."""
from pretrain.sparse.custom import on_plane

__all__ = ['on_plane']
