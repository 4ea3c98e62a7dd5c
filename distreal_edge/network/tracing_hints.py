"""What to do instead of an operation that a plan does not have."""

from __future__ import annotations

__all__ = ["advice_for"]

_ACTIVATION = "use ReLU, ReLU6, Hardswish or Sigmoid"
_NORMALISATION = "use BatchNorm2d or BatchNorm1d"
_LOSS = "remove it: the loss applies it to the class scores"
_FILTERS = "remove it: dropping filters is what dropout vectors do (element-wise Dropout is possible)"
_MODULE = "use the module of torch.nn, so that its weights have a name"
_GROWING = "maps can only stay or shrink on their way to class scores"
_FIXED = "only feed-forward convolutional networks can be traced"
_ORDER = "channels, height and width stay where they are"
_PARTS = "give each part a convolution of its own"
_PADDING = "let the convolution pad, with zeros"
_FLATTEN = "use torch.flatten(x, 1)"
_TWO_DIMENSIONS = "use the 2d one, over images"

_ADVICE = {
    _ACTIVATION: "celu elu gelu glu hardshrink hardsigmoid hardtanh leakyrelu logsigmoid mish prelu rrelu selu "
    "softplus softshrink softsign tanh tanhshrink threshold clamp clip exp",
    "write x * torch.sigmoid(x), or use Hardswish": "silu",
    _NORMALISATION: "layernorm groupnorm instancenorm instancenorm2d localresponsenorm rmsnorm syncbatchnorm normalize "
    "batchnorm3d",
    _LOSS: "softmax softmax2d logsoftmax softmin",
    _FILTERS: "dropout1d dropout2d dropout3d alphadropout featuredropout featurealphadropout",
    _MODULE: "conv2d linear batchnorm bilinear",
    _GROWING: "convtranspose1d convtranspose2d convtranspose3d upsample upsamplingnearest2d upsamplingbilinear2d "
    "interpolate pixelshuffle maxunpool2d unfold fold",
    _FIXED: "lstm gru rnn lstmcell grucell rnncell embedding embeddingbag multiheadattention transformer "
    "transformerencoder transformerencoderlayer scaleddotproductattention matmul bmm einsum",
    _ORDER: "permute transpose t movedim channelshuffle pixelunshuffle flip roll rot90",
    _PARTS: "chunk split tensorsplit unbind narrow select indexselect",
    _PADDING: "pad zeropad2d reflectionpad2d replicationpad2d constantpad2d circularpad2d",
    _FLATTEN: "squeeze unsqueeze unflatten ravel expand expandas",
    _TWO_DIMENSIONS: "conv1d conv3d maxpool1d maxpool3d avgpool1d avgpool3d adaptiveavgpool1d adaptiveavgpool3d",
    "use MaxPool2d with a kernel as large as the map": "adaptivemaxpool2d amax max",
    "use torch.cat along the channels, or +": "stack hstack vstack dstack",
    "gradients flow through the whole of a plan": "detach stopgradient",
    "use + with a layer that learns the sign": "sub isub rsub subtract neg",
    "keep the weights and images float32": "float half double to type astype",
}
_BY_NAME = {name: advice for advice, names in _ADVICE.items() for name in names.split()}


def advice_for(name: str) -> str:
    """Return why a module, function or method of this name cannot be traced, and what to do instead."""
    advice = _BY_NAME.get(name.replace("_", "").lower())
    complaint = "a plan has no such operation"
    return f"{complaint}; {advice}" if advice else f"{complaint}; docs/tracing.md lists those it has"
