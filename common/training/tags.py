"""The tags under which TensorBoard and a tracker show what a run tells: in groups, the losses first.

TensorBoard sorts groups by their names: loss, metrics, optimisation, pictures, speed. The JSON lines of a run
keep the plain names. A run that an earlier version began goes on under these tags; its curves up to there
stay beside them under the plain names.
"""
GROUPS = {
    'loss': 'loss/train',
    'val_loss': 'loss/held_out',
    'loss_spatial': 'loss/spatial',
    'loss_frequency': 'loss/frequency',
    'learning_rate': 'optimisation/learning_rate',
    'weight_decay': 'optimisation/weight_decay',
    'gradient_norm': 'optimisation/gradient_norm',
    'images_per_second': 'speed/images_per_second',
    'data_wait': 'speed/data_wait',
}
AVERAGE = '_ema'  # after the name of what was measured of the average of the weights


def tag_of(name):
    """'val_loss_ema' -> 'loss/held_out_ema'; what is in none of the groups, such as 'top1', is in metrics/."""
    plain = name.removesuffix(AVERAGE)
    return GROUPS.get(plain, f'metrics/{plain}') + name[len(plain):]
