import importlib.util

if importlib.util.find_spec('segmentation_models_pytorch') is None:
    raise ImportError('downstream_ade20k needs segmentation_models_pytorch: pip install -r downstream_ade20k/requirements.txt')
