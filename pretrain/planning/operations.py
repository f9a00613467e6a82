"""Floating-point operations of layers, from the shapes of their tensors, where torch (2.14) counts them otherwise."""
import torch
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count


def convolution_backward(grad, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, needed,
                         out_shape=None):
    """Of a convolution's backward pass: as many as forward for each gradient.

    torch's own count takes the gradient of a grouped weight for that of a dense one.
    """
    return conv_flop_count(x, weight, grad, transposed) * sum(needed[:2])


def attention(query, key, value, *_, out_shape=None, **__):
    """Of fused attention on the CPU, which torch leaves out."""
    return sdpa_flop_count(query, key, value)


def attention_backward(grad, query, key, value, *_, out_shape=None, **__):
    """Of its backward pass."""
    return sdpa_backward_flop_count(grad, query, key, value)


OPERATIONS = {
    torch.ops.aten.convolution_backward: convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}  # for FlopCounterMode
