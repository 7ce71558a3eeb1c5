"""The streaming Conformer encoder (Gulati et al. 2020, arXiv 2005.08100).

Chunk-wise attention with a limited left context, rotary relative positions (Su et al. 2021, arXiv 2104.09864) and
causal depthwise convolution. One definition serves the masked full pass of training and the chunk by chunk pass with
explicit caches, whose layout is the one that sherpa-onnx asks of its ``conformer`` model type.

Dimensions: N utterances, T frames, C channels (``encoder_dim``), H heads, D channels of a head, L frames of left context,
F feature bins.
"""

import math
from itertools import islice
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib.config import ModelConfig
from kdlib.rnnt.lattice import summable

SUBSAMPLING = 4
FRAME_MS = 10 * SUBSAMPLING  # that a frame after subsampling stands for
# Two 3x3 convolutions of stride 2 without padding: output k reads the frames 4k to 4k + 6.
RIGHT_CONTEXT = 3
# Added to the scores of keys that must not be seen. Finite, so that a padded query whose keys are all masked stays
# finite too; far enough that its exponential is exactly zero beside any real score.
MASKED = -1e4


def subsampled_length(num_frames):
    """Frames after subsampling of ``num_frames`` 10 ms feature frames (an int or an int64 tensor)."""
    if isinstance(num_frames, Tensor):
        return torch.div(num_frames - RIGHT_CONTEXT, SUBSAMPLING, rounding_mode="floor").clamp(min=0)
    return max(0, (num_frames - RIGHT_CONTEXT) // SUBSAMPLING)


def chunk_frames(chunk_size: int) -> int:
    """Feature frames that a chunk of so many frames after subsampling reads; the next begins 4 * chunk_size later."""
    return SUBSAMPLING * chunk_size + RIGHT_CONTEXT


def chunk_mask(num_frames: int, chunk_size: int, left_context: int, device=None) -> Tensor:
    """Which keys a query may see: its own chunk, whole, and ``left_context`` frames before that chunk.

    Args:
        num_frames: T.
        chunk_size: frames; 0 means that every frame sees every frame.
        left_context: frames before the chunk; negative means all of them.
    Returns:
        (T, T) bool, query by key.
    """
    if chunk_size <= 0:
        return torch.ones(num_frames, num_frames, dtype=torch.bool, device=device)
    frame = torch.arange(num_frames, device=device)
    start = torch.div(frame, chunk_size, rounding_mode="floor") * chunk_size
    mask = frame < (start + chunk_size).unsqueeze(1)
    if left_context >= 0:
        mask &= frame >= (start - left_context).unsqueeze(1)
    return mask


class Rotary(NamedTuple):
    """Cosines and sines, each (positions, D) with both halves of the channels filled: of the keys, and of the queries."""

    keys: Tuple[Tensor, Tensor]
    queries: Tuple[Tensor, Tensor]


def rotary_tables(num_keys: int, num_queries: int, head_dim: int, like: Tensor) -> Rotary:
    """The rotary angles of ``num_keys`` positions, the queries at the last of them; of ``like``'s device and dtype."""
    # In float64: rounded to float32, the angles of a long utterance's last frames would differ from those of a chunk, which
    # is always at the beginning.
    frequency = torch.exp(torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float64)
                          * (-math.log(10000.0) / head_dim))
    angle = torch.arange(num_keys, device=like.device, dtype=torch.float64).unsqueeze(1) * frequency
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    keys = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)
    return Rotary(keys, (keys[0][num_keys - num_queries:], keys[1][num_keys - num_queries:]))


def rotate(x: Tensor, table: Tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of channels (d, d + D / 2) of ``x`` (N, H, T, D) by the angles of ``table``, two tensors (T, D)."""
    # Sizes are made ints here and below, and only N is left open: what an exported file need not work out costs a phone no
    # time.
    left, right = x.split(int(x.size(-1)) // 2, dim=-1)
    return x * table[0] + torch.cat([right, left], dim=-1) * table[1]


def _flat(x: Tensor) -> Tensor:
    """(N, T, A, B) to (N, T, A * B)."""
    return x.reshape(-1, int(x.size(1)), int(x.size(2)) * int(x.size(3)))


class ConvSubsampling(nn.Module):
    """(N, T, F) features, normalised by stored statistics, to (N, (T - 3) // 4, C)."""

    def __init__(self, num_features: int, channels: int, encoder_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("inverse_std", torch.ones(num_features))
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2)
        self.out = nn.Linear(channels * subsampled_length(num_features), encoder_dim)
        # Keep the signal's variance through the rectifiers: torch's own initialisation shrinks it tenfold, below the
        # biases of the layers that follow.
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T0, F) features to (N, T, C)."""
        x = (x - self.mean) * self.inverse_std
        x = F.relu(self.conv1(x.unsqueeze(1)))
        x = F.relu(self.conv2(x))
        return self.out(_flat(x.transpose(1, 2)))


class FeedForward(nn.Module):
    """(N, T, C) to (N, T, C)."""

    def __init__(self, encoder_dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(encoder_dim)
        self.up = nn.Linear(encoder_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, encoder_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(F.silu(self.up(self.norm(x))))))


class ChunkAttention(nn.Module):
    """Multi-head attention over the chunk and its left context, positions by rotation."""

    def __init__(self, encoder_dim: int, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(encoder_dim)
        self.qkv = nn.Linear(encoder_dim, 3 * num_heads * head_dim)
        self.out = nn.Linear(num_heads * head_dim, encoder_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, rotary: Rotary, cache: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """
        Args:
            x: (N, T, C).
            bias: added to the scores, broadcastable to (N, H, T, S); S = T, or L + T with a cache.
            rotary: the table of the S keys' positions and that of the T queries', which stand at the last of them.
            cache: (N, L, 2 * H * D), the keys, not yet turned, and the values of the L frames before ``x``.
        Returns:
            (N, T, C), and the keys and values (N, S, 2 * H * D), whose last L frames are the next cache.
        """
        width = self.num_heads * self.head_dim
        query, seen = self.qkv(self.norm(x)).split([width, 2 * width], dim=-1)
        if cache is not None:
            seen = torch.cat([cache, seen], dim=1)
        key, value = self._heads(seen).split(self.num_heads, dim=1)
        query = rotate(self._heads(query), rotary.queries) * self.head_dim ** -0.5
        weight = torch.softmax(query @ rotate(key, rotary.keys).transpose(-2, -1) + bias, dim=-1)
        context = _flat((weight @ value).transpose(1, 2))
        return self.dropout(self.out(context)), seen

    def _heads(self, x: Tensor) -> Tensor:
        """(N, T, A * D) to (N, A, T, D)."""
        return x.reshape(-1, int(x.size(1)), int(x.size(2)) // self.head_dim, self.head_dim).transpose(1, 2)


class CausalConvolution(nn.Module):
    """The Conformer's convolution module, its depthwise convolution looking back only."""

    def __init__(self, encoder_dim: int, kernel_size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(encoder_dim)
        self.gated = nn.Linear(encoder_dim, 2 * encoder_dim)
        self.depthwise = nn.Conv1d(encoder_dim, encoder_dim, kernel_size, groups=encoder_dim)
        self.inner_norm = nn.LayerNorm(encoder_dim)
        self.out = nn.Linear(encoder_dim, encoder_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """
        Args:
            x: (N, T, C).
            cache: (N, kernel_size - 1, C), the gated inputs before ``x``; none means silence (zeros).
        Returns:
            (N, T, C), and the next cache.
        """
        x = F.glu(self.gated(self.norm(x)), dim=-1)
        past, frames = self.depthwise.kernel_size[0] - 1, int(x.size(1))
        x = F.pad(x, (0, 0, past, 0)) if cache is None else torch.cat([cache, x], dim=1)
        cache = x[:, frames:]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(F.silu(self.inner_norm(summable(x))))), cache


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, dropout = config.encoder_dim, config.dropout
        self.feed_forward1 = FeedForward(dim, config.feedforward_dim, dropout)
        self.attention = ChunkAttention(dim, config.num_heads, config.head_dim, dropout)
        self.convolution = CausalConvolution(dim, config.kernel_size, dropout)
        self.feed_forward2 = FeedForward(dim, config.feedforward_dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, bias: Tensor, rotary: Rotary, attention_cache: Optional[Tensor] = None,
                convolution_cache: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor]:
        """(N, T, C) to (N, T, C) and the two caches; the arguments are those of the attention and the convolution."""
        x = x + 0.5 * self.feed_forward1(x)
        attended, attention_cache = self.attention(x, bias, rotary, attention_cache)
        x = x + attended
        convolved, convolution_cache = self.convolution(x, convolution_cache)
        x = x + convolved
        x = x + 0.5 * self.feed_forward2(x)
        return self.norm(x), attention_cache, convolution_cache


class Conformer(nn.Module):
    """The encoder: subsampling by 4 and ``num_layers`` Conformer layers of one width."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.subsampling = ConvSubsampling(config.num_features, config.subsampling_channels, config.encoder_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the training features' mean and standard deviation, each (F,) float32."""
        self.subsampling.mean.copy_(mean)
        self.subsampling.inverse_std.copy_(1.0 / std.clamp(min=1e-3))

    def forward(self, x: Tensor, lengths: Tensor, chunk_size: Optional[int] = None,
                left_context: Optional[int] = None, layers: Sequence[int] = (),
                depth: Optional[int] = None) -> Tuple[Tensor, Tensor, List[Tensor]]:
        """The masked full pass.

        Args:
            x: (N, T0, F) float32 log-mel features, 10 ms frames.
            lengths: (N,) int64, frames of each utterance.
            chunk_size, left_context: in frames after subsampling; the config's when None. See :func:`chunk_mask`.
            layers: numbers of the layers, from 0, whose outputs are wanted too.
            depth: how many layers are run, for callers who need no more; all when None.
        Returns:
            (N, T, C) with T = (T0 - 3) // 4, of the last layer that is run; the lengths (N,) int64; one (N, T, C) for each
            of ``layers``.
        """
        chunk_size = self.config.chunk_size if chunk_size is None else chunk_size
        left_context = self.config.left_context if left_context is None else left_context
        # Under autocast too the layers add to float32, and norm it: half precision would lose what each of many adds.
        x = summable(self.dropout(self.subsampling(x)))
        lengths = subsampled_length(lengths)
        mask = chunk_mask(x.size(1), chunk_size, left_context, x.device)
        inside = torch.arange(x.size(1), device=x.device) < lengths.unsqueeze(1)
        bias = torch.where(mask & inside[:, None, None, :], 0.0, MASKED).to(x.dtype)
        rotary = rotary_tables(x.size(1), x.size(1), self.config.head_dim, x)
        outputs = {}
        for number, layer in enumerate(islice(self.layers, depth)):
            x, _, _ = layer(x, bias, rotary)
            if number in layers:
                outputs[number] = x
        return x, lengths, [outputs[number] for number in layers]

    def initial_caches(self, num_streams: int, like: Tensor, left_context: Optional[int] = None) -> Tuple[Tensor, Tensor]:
        """Zeros: attention (num_layers, L, N, 2 * H * D) and convolution (num_layers, kernel_size - 1, N, C); L is the
        config's when None."""
        c = self.config
        left_context = c.left_context if left_context is None else left_context
        return (like.new_zeros(c.num_layers, left_context, num_streams, 2 * c.num_heads * c.head_dim),
                like.new_zeros(c.num_layers, c.kernel_size - 1, num_streams, c.encoder_dim))

    def streaming_forward(self, x: Tensor, attention_cache: Tensor, convolution_cache: Tensor, processed: Tensor,
                          lengths: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor]:
        """One chunk of each stream.

        Args:
            x: (N, 4 * chunk_size + 3, F) features, of any chunk_size; the next call begins 4 * chunk_size frames later.
            attention_cache: (num_layers, L, N, 2 * H * D).
            convolution_cache: (num_layers, kernel_size - 1, N, C).
            processed: (N,) int64, frames after subsampling that each stream has seen before this chunk.
            lengths: (N,) int64, frames after subsampling of this chunk that are no padding; all of them when None.
        Returns:
            (N, chunk_size, C) and the two next caches.
        """
        x = self.subsampling(x)
        left, frames = int(attention_cache.size(1)), int(x.size(1))
        position = torch.arange(left + frames, device=x.device)
        # The cache is filled from its end: a young stream has seen only its last `processed` frames.
        inside = position >= (left - processed).unsqueeze(1)
        if lengths is not None:
            inside &= position < (left + lengths).unsqueeze(1)
        bias = torch.where(inside, 0.0, MASKED).to(x.dtype)[:, None, None, :]
        rotary = rotary_tables(left + frames, frames, self.config.head_dim, x)
        caches = attention_cache.transpose(1, 2), convolution_cache.transpose(1, 2)
        attention, convolution = [], []
        for number, layer in enumerate(self.layers):
            x, seen, conv = layer(x, bias, rotary, *(cache[number] for cache in caches))
            attention.append(seen)
            convolution.append(conv)
        return x, torch.stack(attention)[:, :, frames:].transpose(1, 2), torch.stack(convolution).transpose(1, 2)
