"""Modules with a pixel shuffle: some whose sum is proved, and some that are left with the reason."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import Upsample

SCALE = 2.0


def doubled(x: Tensor) -> Tensor:
    return x * 2


class Base(nn.Module):
    """With all that the forwards below need."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.PixelShuffle(2)
        self.up = nn.Sequential(nn.Conv2d(4, 16, 1), nn.PixelShuffle(2))
        self.conv, self.skip = nn.Conv2d(4, 16, 1), nn.Conv2d(4, 4, 1)
        self.weight = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("offset", torch.randn(4, 1, 1))
        self.factor, self.seen = 2.0, 0


class Plain(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + y


class Reversed(Base):
    def forward(self, x, y):
        return torch.add(y, self.shuffle(self.conv(x)))


class Method(Base):
    def forward(self, x, y):
        return self.skip(y).add(other=self.shuffle(self.conv(x)))


class Scaled(Base):
    """Parameters, buffers, literals and functions around it."""

    def forward(self, x, y):
        raised = self.shuffle(self.conv(F.relu(x))) + self.weight * y
        return raised * 0.5 + self.offset.to(torch.float32).mean(dim=(1, 2), keepdim=True)


class Twice(Base):
    def forward(self, x, y):
        return self.up(x) + (self.shuffle(self.conv(x)) + y)


class SameTwice(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + (self.shuffle(self.conv(x * 0.5)) + y)


class ShuffleOfInput(Base):
    """Nothing runs between the shuffle and the sum, so it does not matter who else holds x."""

    def forward(self, x, y):
        wide = self.conv(x)
        return y + self.shuffle(wide) - wide.mean()


class Nested(nn.Module):
    """The sum is in the module above the one that shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample, self.skip = Returns(), nn.Conv2d(4, 4, 1)

    def forward(self, x, y):
        return self.upsample(x) + self.skip(y)


class Returns(Base):
    def forward(self, x):
        return self.shuffle(self.conv(x))


PROVED = {
    Plain: 1,
    Reversed: 1,
    Method: 1,
    Scaled: 1,
    Twice: 2,
    SameTwice: 1,
    ShuffleOfInput: 1,
    Nested: 1,
    Upsample: 1,
}


class Branches(Base):
    def forward(self, x, y):
        out = self.shuffle(self.conv(x))
        if self.training:
            out = out * 1
        return out + y


class Loops(Base):
    def forward(self, x, y):
        for _ in range(2):
            y = y + self.shuffle(self.conv(x))
        return y


class ReadsAttribute(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + y * self.factor


class ReadsMode(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + F.dropout(y, 0.5, self.training)


class ReadsGlobal(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + y * SCALE


class CallsFunction(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + doubled(y)


class CallsMethod(Base):
    def twice(self, y):
        return y * 2

    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + self.twice(y)


class Computes(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + y * math.log(3)


class AsksForState(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + F.dropout(y, 0.5, torch.is_grad_enabled())


class DrawsNumbers(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) + y * torch.rand(1)


class Checkpoints(Base):
    def forward(self, x, y):
        return torch.utils.checkpoint.checkpoint(self.conv, x) + self.shuffle(self.conv(x))


class UsesTwice(Base):
    def forward(self, x, y):
        out = self.shuffle(self.conv(x))
        return out + y, out


class AddsToItself(Base):
    def forward(self, x, y):
        out = self.shuffle(self.conv(x))
        return out + out


class AddsInPlace(Base):
    def forward(self, x, y):
        out = self.shuffle(self.conv(x))
        out += y
        return out


class ChangesOther(Base):
    """Its caller sees the sum in y."""

    def forward(self, x, y):
        y += self.shuffle(self.conv(x))
        return y


class Remembers(Base):
    def forward(self, x, y):
        self.features = self.conv(x)
        return self.shuffle(self.features) + y


class AddsScaled(Base):
    def forward(self, x, y):
        return torch.add(self.shuffle(self.conv(x)), y, alpha=2)


class Multiplies(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x)) * y


class ChangesInput(Base):
    """The shuffle's input is written to before the sum."""

    def forward(self, x, y):
        wide = self.conv(x)
        out = self.shuffle(wide)
        other = wide.mul_(2)
        return out + y * other.mean()


class ChangesAlias(Base):
    """Its memory is, under another name."""

    def forward(self, x, y):
        wide = self.conv(x)
        out = self.shuffle(wide.view_as(wide))
        other = wide.mul_(2)
        return out + y * other.mean()


class Variadic(Base):
    def forward(self, x, *args):
        return self.shuffle(self.conv(x)) + args[0]


class NeverCalls(Base):
    def forward(self, x, y):
        return F.pixel_shuffle(self.conv(x), 2) + y


class OnlyReturns(Base):
    def forward(self, x, y):
        return self.shuffle(self.conv(x))


LEFT = {
    Branches: "the forward of its Branches uses its 'training', which may change|branches or loops",
    Loops: "branches or loops",
    ReadsAttribute: "uses its 'factor', which may change",
    ReadsMode: "uses its 'training', which may change",
    ReadsGlobal: "uses 'SCALE', which is not torch's",
    CallsFunction: "uses 'doubled', which is not torch's",
    CallsMethod: "uses its 'twice', which may change",
    Computes: "computes 1.09.* while it is traced",
    AsksForState: "uses 'is_grad_enabled', which a trace does not keep",
    DrawsNumbers: "makes tensors of its own",
    Checkpoints: "uses 'utils', which a trace does not keep",
    UsesTwice: "its result is used 2 times",
    AddsToItself: "its result is added to itself",
    AddsInPlace: r"has an operator like \+=",
    ChangesOther: r"has an operator like \+=",
    Remembers: "sets an attribute or an item",
    AddsScaled: "its result goes to 'add', not to a sum",
    Multiplies: "its result goes to 'mul', not to a sum",
    ChangesInput: "'mul_', which runs before its sum, might change its input",
    ChangesAlias: "'mul_', which runs before its sum, might change its input",
    Variadic: r"takes \*args or \*\*kwargs",
    NeverCalls: "its NeverCalls does not call it",
    OnlyReturns: "its result is returned by the model, not added",
}
