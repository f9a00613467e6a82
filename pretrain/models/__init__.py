"""Your own networks. Import each file here: what it registers with timm becomes a --model name."""
from pretrain.models import custom, small_resnet  # noqa: F401
