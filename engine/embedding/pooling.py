"""From token vectors to one vector a text: what follows the transformer in a sentence-transformers folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import ConfigError
from ..folders.sentence_transformer import DenseSpec, NormalizeSpec, PoolingSpec
from ..models.blocks import linear_op
from ..ops.bind import BoundOp
from ..ops.linear import ACTIVATIONS as OF_LINEAR
from ..weights import NameRules, load_weights

__all__ = ["ACTIVATIONS", "SentenceHead"]


class Pooling(nn.Module):
    """The `pool` op in one or several modes, results side by side in the folder's order."""

    def __init__(self, spec: PoolingSpec, hidden_size: int | None = None, normalize: bool = False) -> None:
        """Declare the ops.

        Args:
            spec: the folder's module.
            hidden_size: width of the token vectors, as far as it is known.
            normalize: scale what each op gives to unit length.
        """
        super().__init__()
        self.include_prompt = spec.include_prompt
        self.normalize = normalize
        options = {"normalize": True} if normalize else {}
        self.pools = [BoundOp("pool", facts={"hidden": hidden_size}, mode=mode, **options) for mode in spec.modes]

    def forward(self, hidden: Tensor, batch: PackedBatch, prompt_tokens: int) -> Tensor:
        """`[tokens, hidden]` to fp32 `[texts, modes * hidden]`."""
        skip = 0 if self.include_prompt else prompt_tokens
        return torch.cat([pool(hidden, batch.cu_seqlens, skip=skip) for pool in self.pools], dim=-1)


class Dense(nn.Module):
    """A linear layer with its activation on the pooled vectors."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.bias)
        self.op = linear_op(self.linear, epilogue="none" if spec.activation == "identity" else spec.activation)

    def forward(self, vectors: Tensor) -> Tensor:
        """`[texts, in_features]` to `[texts, out_features]`."""
        return self.op(vectors)


class Normalize(nn.Module):
    """Rows of unit length; a zero row stays zero."""

    def forward(self, vectors: Tensor) -> Tensor:
        """`[texts, width]` to the same shape."""
        return F.normalize(vectors, p=2, dim=-1)


ACTIVATIONS = {**OF_LINEAR, "identity": OF_LINEAR["none"]}
"""Name of an activation, as in `folders/sentence_transformer.ACTIVATIONS` -> function."""


class SentenceHead(nn.Module):
    """Pooling, then Dense and Normalize modules as the folder orders them; computes in fp32 (fp64 for an fp64 model).

    A Normalize right behind a pooling of one mode is done by the `pool` op itself.

    Attributes:
        dimension: width of the vectors that come out.
    """

    def __init__(self, pooling: Pooling, rest: Sequence[Dense | Normalize], dimension: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.rest = nn.ModuleList(rest)
        self.dimension = dimension

    @classmethod
    def from_specs(
        cls, modules: Sequence[PoolingSpec | DenseSpec | NormalizeSpec], hidden_size: int, source: str
    ) -> SentenceHead:
        """Build the head and load the weights of its Dense modules.

        Args:
            modules: as `read_sentence_folder` gives them, pooling first.
            hidden_size: width of the token vectors.
            source: the folder, for messages.

        Raises:
            ConfigError: widths do not follow from one module to the next.
            WeightsError: a Dense module's weights are missing or misshapen.
        """
        pooling_spec = modules[0]
        if not isinstance(pooling_spec, PoolingSpec):
            raise ConfigError(f"{source}: modules.json: expected Pooling behind the transformer")
        if pooling_spec.dimension not in (None, hidden_size):
            raise ConfigError(f"{source}: Pooling: expected width {hidden_size}, got {pooling_spec.dimension}")
        width = hidden_size * len(pooling_spec.modes)
        # One mode with a Normalize behind it is one op: a kernel has the whole vector at hand.
        unit = len(pooling_spec.modes) == 1 and len(modules) > 1 and isinstance(modules[1], NormalizeSpec)
        pooling = Pooling(pooling_spec, hidden_size, normalize=unit)
        rest: list[Dense | Normalize] = []
        for spec in modules[2 if unit else 1 :]:
            if isinstance(spec, DenseSpec):
                if spec.in_features != width:
                    raise ConfigError(f"{spec.folder}: in_features: expected {width}, got {spec.in_features}")
                dense = Dense(spec)
                load_weights(dense, spec.folder, NameRules(), dtype=torch.float32)
                rest.append(dense)
                width = spec.out_features
            else:
                rest.append(Normalize())
        return cls(pooling, rest, width)

    @property
    def unit_length(self) -> bool:
        """Whether the vectors that come out are of length 1."""
        return isinstance(self.rest[-1], Normalize) if len(self.rest) else self.pooling.normalize

    def bind(self, device: torch.device, dtype: torch.dtype, *, backend: str, deterministic: bool) -> None:
        """Bind the pool ops for hidden states of `dtype` on `device`, and the Dense modules for where they are.

        Raises:
            BackendError: as `resolve`.
        """
        for pool in self.pooling.pools:
            pool.bind(device, dtype, backend=backend, deterministic=deterministic)
        for dense in self._dense():
            weight = dense.linear.weight
            dense.op.bind(weight.device, weight.dtype, backend=backend, deterministic=deterministic)

    def bound_ops(self) -> tuple[BoundOp, ...]:
        """The ops of all modules, in their order."""
        return *self.pooling.pools, *(dense.op for dense in self._dense())

    def forward(self, hidden: Tensor, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        """Token vectors `[tokens, hidden]` to text vectors, fp32 `[texts, dimension]`.

        Args:
            hidden: the transformer's last hidden state.
            batch: the batch it came from.
            prompt_tokens: leading tokens of each text that belong to a prompt; left out where the folder says so.
        """
        vectors = self.pooling(hidden, batch, prompt_tokens)
        for module in self.rest:
            vectors = module(vectors)
        return vectors

    def _dense(self) -> list[Dense]:
        return [module for module in self.rest if isinstance(module, Dense)]
