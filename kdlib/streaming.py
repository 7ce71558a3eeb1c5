"""Recognition as the audio arrives: many streams in one batch, each at its own place.

A stream takes features in pieces of any length. Whenever it has those of a whole chunk, the recogniser runs the encoder
on the chunk, with the caches of that stream, and takes its search on. What comes out is what the masked full pass and a
search over all of it give, chunk for chunk.

F feature bins, L frames of left context, C channels.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from kdlib.config import DecodeConfig
from kdlib.conformer import SUBSAMPLING, chunk_frames, subsampled_length
from kdlib.decoding import Hypothesis, Search, find_search
from kdlib.transducer import Transducer


class Stream:
    """One utterance on its way: features not yet seen, caches, and what has been recognised."""

    def __init__(self, search: Search, attention: Tensor, convolution: Tensor):
        self.search = search
        self.attention, self.convolution = attention, convolution  # (num_layers, L, C), (num_layers, kernel_size - 1, C)
        self.features: List[Tensor] = []
        self.num_features = 0  # waiting
        self.ended = False

    def accept(self, features: Tensor) -> None:
        """More features: (T0, F) float32, any T0; ValueError once the stream has ended."""
        if self.ended:
            raise ValueError("the stream has ended: it takes no more features")
        self.features.append(features)
        self.num_features += features.size(0)

    def end(self) -> None:
        """No more features will come; what is left makes a last, shorter chunk."""
        self.ended = True

    @property
    def result(self) -> Hypothesis:
        """The best hypothesis so far; its ``frames`` are counted after subsampling."""
        return self.search.best


class StreamingRecogniser:
    """Runs streams of one model.

    Args:
        model: in evaluation mode.
        chunk_size, left_context: in frames after subsampling (40 ms); the model's config says them when None.
        config: which search, and how; greedy with at most one token a frame when None.
    """

    def __init__(self, model: Transducer, chunk_size: Optional[int] = None, left_context: Optional[int] = None,
                 config: Optional[DecodeConfig] = None):
        self.model = model
        self.chunk_size = model.config.chunk_size if chunk_size is None else chunk_size
        self.left_context = model.config.left_context if left_context is None else left_context
        if self.chunk_size < 1 or self.left_context < 0:
            raise ValueError(f"streams need chunks: chunk_size is {self.chunk_size}, left_context {self.left_context}")
        self.search, self.options = find_search(config or DecodeConfig())
        self.device = next(model.parameters()).device

    def create_stream(self, before: Tuple[int, ...] = ()) -> Stream:
        """A stream at its beginning; ``before``: labels that its predictor has read already (see :class:`Search`)."""
        like = next(self.model.parameters())
        caches = self.model.encoder.initial_caches(1, like, self.left_context)
        return Stream(self.search(self.model.predictor.context_size, before), *(cache[:, :, 0] for cache in caches))

    def ready(self, stream: Stream) -> bool:
        """Whether the stream has a chunk to run."""
        if stream.ended:
            return subsampled_length(stream.num_features) > 0
        return stream.num_features >= chunk_frames(self.chunk_size)

    @torch.no_grad()
    def decode(self, streams: List[Stream]) -> None:
        """Run the next chunk of each of these streams, all in one batch; a ValueError where one is not ready."""
        if not all(map(self.ready, streams)):
            raise ValueError("a stream has no chunk to run: ask ready() first, or call run()")
        if not streams:
            return
        window = chunk_frames(self.chunk_size)
        chunks, lengths = [], []
        for stream in streams:
            # Joined anew only where more has come: else it would cost the square of what was accepted at once.
            waiting = stream.features[0] if len(stream.features) == 1 else torch.cat(stream.features)
            chunk = waiting[:window]
            # The last chunk of a stream may be short. What it lacks is made up with zeros, which no frame before them
            # sees through the convolutions; attention would, and is told of them by `lengths`.
            lengths.append(subsampled_length(len(chunk)))
            chunks.append(torch.nn.functional.pad(chunk, (0, 0, 0, window - len(chunk))))
            stream.features = [waiting[SUBSAMPLING * self.chunk_size:]]
            stream.num_features = len(stream.features[0])
        counts = torch.tensor(lengths, device=self.device)
        processed = torch.tensor([stream.search.num_frames for stream in streams], device=self.device)
        encoded, attention, convolution = self.model.encoder.streaming_forward(
            torch.stack(chunks).to(self.device), torch.stack([stream.attention for stream in streams], dim=2),
            torch.stack([stream.convolution for stream in streams], dim=2), processed, counts)
        for number, stream in enumerate(streams):
            stream.attention, stream.convolution = attention[:, :, number], convolution[:, :, number]
        self.search.advance([stream.search for stream in streams], self.model, encoded, counts, **self.options)

    def run(self, streams: List[Stream]) -> None:
        """Run all streams until none is ready."""
        while True:
            waiting = [stream for stream in streams if self.ready(stream)]
            if not waiting:
                return
            self.decode(waiting)
