"""Depthwise convolution of channels-last feature maps: odd kernel, stride 1, same padding, optional residual."""
