"""``adopt``: every rule, asked about every layer."""

from __future__ import annotations

from torch import nn

from . import depthwise, geglu, pixel_shuffle
from .layer_norm import rule as layer_norm_rule
from .report import AdoptionReport
from .sites import Site, check_module, sites_of


def adopt(model: nn.Module, *, channels_last: bool | None = None, layer_norm: bool = False) -> AdoptionReport:
    """Let this package's operators compute the layers of a model that they are proved equal to, in place.

    A swapped layer keeps its module, parameters, names and hooks; only its class becomes a subclass of its own with
    another forward. So optimizers, checkpoints, ``isinstance``, copies and pickles go on working. Nothing is imported
    for it, and nothing is slower on purpose: what cannot gain is left alone, and the report says why.

    - diffusers' ``GEGLU`` and timm's ``GluMlp`` with a GELU become :func:`dimr_kernels.functional.geglu_linear`.
    - Depthwise ``nn.Conv2d`` of 3x3, 5x5 or 7x7, stride 1, same padding, in timm's and torchvision's ConvNeXt become
      :func:`dimr_kernels.functional.depthwise_conv2d`. The network gets one hook, which makes the images that come in
      channels last; from there on every layer keeps that layout and nothing is copied between them. A feature map in
      another layout goes to torch's convolution as before.
    - ``nn.PixelShuffle`` whose result only goes into a sum becomes :func:`dimr_kernels.functional.pixel_shuffle_add`,
      where ``torch.fx`` can trace the module around both, and its forward depends on tensors alone.
    - ``nn.LayerNorm`` stays: torch's own is one fused kernel.

    What changes a model's parameters is asked for by name: :func:`dimr_kernels.adoption.adopt_time_norms`,
    :func:`dimr_kernels.adoption.adopt_ada_norm`.

    Args:
        model: changed in place. Adopting it again changes nothing.
        channels_last: True swaps depthwise convolutions in any network, and runs the whole model in channels last;
            its forward must not ``view`` feature maps as if they were contiguous (torch raises an error where it
            does). False leaves all of them alone. None does what is known to be right, as above.
        layer_norm: swap ``nn.LayerNorm``, and timm's, over one dimension as well, for TD-LN that is constant in time.
            It was not measured to be faster.

    Returns:
        What was swapped, what was not and why; ``print`` it. Its ``undo()`` restores the model.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    A second backward through the fused GeGLU and convolution is an error that says what to do, and ``torch.jit.script``
    does not know them.

    Example:
        >>> import timm, dimr_kernels as dk
        >>> model = timm.create_model("convnext_atto")
        >>> report = dk.adopt(model)
        >>> len(report.swapped)
        12
        >>> report.undo()
    """
    check_module("adopt", model)
    report = AdoptionReport()
    sites = sites_of(model)
    convolutions: list[Site] = []
    rules = (geglu.RULE, depthwise.rule(channels_last), pixel_shuffle.RULE, layer_norm_rule(layer_norm))
    for site in sites:
        for rule in rules:
            what = rule.what(site)
            if what is None:
                continue
            why_not = rule.why_not(site)
            if why_not is not None:
                report.add_left(site.path, what, why_not)
                continue
            by, change = rule.swap(site)
            report.add_swapped(site.path, what, by, change)
            if isinstance(site.module, nn.Conv2d):
                convolutions.append(site)
    depthwise.run_in_channels_last(model, convolutions, channels_last, report)
    return report
